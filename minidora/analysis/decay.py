"""Where the slopes of the paper's figure 2 come from: weight decay against turn.

AdamW's decoupled decay λ leaves a weight vector w0 of norm m, after some steps, at

    w = (1 - Λ) w0 + d,    1 - Λ = Π(1 - rate λ),

where d is all that the gradients moved it by: u long, ρ = d · w0 / m of it along w0. Λ is called
`pull` here, the share of w0 that decay has taken away; while small, it is the total decay Σ rate λ.
Along w0 the vector w is (1 - Λ) m + ρ long, across it sqrt(u² - ρ²), so that

    1 - ΔD = cos = ((1 - Λ) m + ρ) / ‖w‖    and, with no approximation,
    growth = ‖w‖ - m = ((1 - Λ) m + ρ) / (1 - ΔD) - m,    without ρ  m (ΔD - Λ) / (1 - ΔD).

Adam moves every vector by about one length u, whatever its norm: ΔD ≈ u² / (2 m² (1 - Λ)²), so a
long vector turns less. ΔM is the mean of |growth|, and what it does with m, Λ / ΔD decides:

- ΔD > Λ: |growth| ≈ m ΔD ≈ u² / 2m falls with m, as ΔD does. ΔM and ΔD go together.
- Λ > ΔD: |growth| ≈ m Λ rises with m, while ΔD falls. The correlation is negative.

Growth with its sign, about u² / 2m - Λ m + ρ, falls with m at every Λ, more steeply the larger Λ
is: at one checkpoint its correlation with ΔD does not turn over, the absolute value in ΔM does.
LoRA's decay acts on A and B, never on W0: Λ = 0. DoRA's norm is |m|, a parameter that decays by
itself: `moved_magnitude`. Between checkpoints |growth| and ΔD both rise, so pooling over them adds
to the correlation: it turns later, or, where norms are nearly one, never.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._boundary import Array, number
from .movement import Changes


class Update(NamedTuple):
    """What the gradients moved vectors by: its length u, and ρ, its part along w0."""

    lengths: Array
    radial: Array


def total_decay(rates: ArrayLike, weight_decay: float) -> float:
    """Σ rate λ over the steps, the first-order pull. rates: (steps,), λ = weight_decay.

    >>> round(total_decay([0.1, 0.2], weight_decay=0.5), 12)
    0.15
    """
    return float(_decays(rates, weight_decay).sum())


def pulls(rates: ArrayLike, weight_decay: float) -> Array:
    """Λ = 1 - Π(1 - rate λ) after each step. rates: (steps,), λ = weight_decay. Returns (steps,).

    Below the total decay, and close to 1 - exp(-total decay). Raises ValueError where one step
    would take more than all of a weight.

    >>> pulls([0.1, 0.2], weight_decay=0.5).round(6)
    array([0.05 , 0.145])
    """
    with np.errstate(divide="ignore"):  # a step that takes all leaves log 0
        return -np.expm1(np.cumsum(np.log1p(-_decays(rates, weight_decay))))


def _decays(rates: ArrayLike, weight_decay: float) -> Array:
    decays = checked("rates", rates, 0) * number("weight_decay", weight_decay, minimum=0)
    if decays.max() > 1:
        raise ValueError(f"rates: expected rate * weight_decay of at most 1, got {decays.max()}")
    return decays


def checked(name: str, value: ArrayLike, minimum: float, maximum: float = math.inf) -> Array:
    """`value` in float64, if it holds something, all of it finite and within these bounds."""
    array = np.asarray(value, np.float64)
    if array.size == 0:
        raise ValueError(f"{name}: expected one number or more, got shape {array.shape}")
    outside = ~(np.isfinite(array) & (array >= minimum) & (array <= maximum))
    if outside.any():
        raise ValueError(
            f"{name}: expected finite numbers from {minimum} to {maximum}, got {array[outside][0]}"
        )
    return array


def growth_at(before: ArrayLike, turn: ArrayLike, pull: ArrayLike, radial: ArrayLike = 0) -> Array:
    """Signed growth of norms m = before: ((1 - Λ) m + ρ) / (1 - ΔD) - m, turn below 1. Any shapes.

    Norms of 4, half turned: without decay they grow by Pythagoras; a pull equal to the turn undoes
    it; a larger one shrinks them.

    >>> growth_at(4, 0.5, [0, 0.5, 0.75])
    array([ 4.,  0., -2.])
    """
    m, turn = checked("before", before, 0), checked("turn", turn, 0, math.nextafter(1, 0))
    return ((1 - checked("pull", pull, 0, 1)) * m + np.asarray(radial)) / (1 - turn) - m


def moved(before: ArrayLike, lengths: ArrayLike, pull: ArrayLike, radial: ArrayLike = 0) -> Changes:
    """Growth and turn of vectors of norms m = before, from the length u of their update.

    radial: ρ, from -u to u. All broadcast. With n² = ((1 - Λ) m + ρ)² + u² - ρ² the growth is
    n - m and the turn 1 - ((1 - Λ) m + ρ) / n; without ρ, for small turns, u² / (2 m² (1 - Λ)²).

    >>> moved([3.0], [4.0], 0).growth, moved([3.0], [4.0], 0).turn
    (array([2.]), array([0.4]))
    """
    m, u = checked("before", before, 0), checked("lengths", lengths, 0)
    rho = checked("radial", radial, -math.inf)
    if (np.abs(rho) > u).any():
        raise ValueError("radial: expected parts no longer than lengths, got a longer one")
    pull = checked("pull", pull, 0, 1)
    m, pull, rho, aside_sq = np.broadcast_arrays(m, pull, rho, (u - rho) * (u + rho))
    along = (1 - pull) * m + rho
    after = np.sqrt(along * along + aside_sq)  # n
    # 1 - cos = aside² / (n (n + along)) and n - m = (n² - m²) / (n + m) keep their digits where
    # cos is near 1 and n near m
    length = np.where(after > 0, after, 1)
    ahead = np.where(along > 0, along, 0)
    turn = np.where(along > 0, aside_sq / (length * (length + ahead)), 1 - along / length)
    grown_sq = (rho - pull * m) * (along + m) + aside_sq
    growth = np.divide(grown_sq, after + m, out=np.zeros_like(after), where=after + m > 0)
    return Changes(m, growth, np.where(m > 0, turn, 1.0))


def moved_magnitude(
    before: ArrayLike, lengths: ArrayLike, pull: ArrayLike, step: ArrayLike, radial: ArrayLike = 0
) -> Changes:
    """The same for DoRA, whose norm is |m|: m becomes (1 - Λ) m + p, so growth = -Λ m + p.

    step: p, what the gradients moved m by, with its sign. lengths and radial: of the update of V,
    whose base does not decay. A magnitude below zero turns its vector about, turn = 2 - turn of V.

    The turn has no part in the growth, so Λ m / p sets the slope. With p > 0, |growth| = |p - Λ m|
    falls with m, as the turn does, while Λ m < p, and rises beyond. With p of either sign, equally
    likely, the mean of |p - Λ m| never falls with m: decay can then only lower the correlation. For
    one size p it is max(p, Λ m), which nothing shows in until Λ times the largest norm passes p.

    >>> moved_magnitude([1.0, 2.0, 4.0], 0.1, 0.5, 1.0).growth
    array([ 0.5,  0. , -1. ])
    """
    of_V = moved(before, lengths, 0, radial)
    p = checked("step", step, -math.inf)
    m = (1 - checked("pull", pull, 0, 1)) * of_V.before + p
    before, m, turn = np.broadcast_arrays(of_V.before, m, of_V.turn)
    turn = np.where(m > 0, turn, np.where(m < 0, 2 - turn, 1.0))
    return Changes(before, np.abs(m) - before, turn)


def update_of(changes: Changes, pull: ArrayLike) -> Update:
    """The u and ρ that `moved` made these changes of, at this pull: what a run's updates were.

    >>> update_of(moved([3.0], [4.0], 0.5, [1.0]), 0.5)
    Update(lengths=array([4.]), radial=array([1.]))
    """
    after = changes.before + changes.growth
    along = after * (1 - changes.turn)
    radial = along - (1 - checked("pull", pull, 0, 1)) * changes.before
    aside_sq = after * after * changes.turn * (2 - changes.turn)  # sin² = ΔD (2 - ΔD)
    return Update(np.sqrt(radial * radial + aside_sq), radial)


def radial_parts(lengths: ArrayLike, dimension: int, rng: np.random.Generator) -> Array:
    """ρ of updates of these lengths in random directions of `dimension` dimensions, drawn by rng.

    The first coordinate of a random unit vector times u: mean 0, standard deviation u / sqrt(d).
    """
    u = checked("lengths", lengths, 0)
    d = checked("dimension", dimension, 2)
    along = rng.normal(size=u.shape)
    return u * along / np.sqrt(along * along + rng.chisquare(d - 1, size=u.shape))


def hidden_below(dimension: int, *, norm_sd: float = 1.0) -> float:
    """The turn, 2 / (d τ²), below which the radial part hides what the norms do at Λ = 0.

    A random update has a ρ of about u / sqrt(d). It outweighs Pythagoras, u² / 2m, where u / m <
    2 / sqrt(d), that is where ΔD ≈ u² / 2m² < 2 / d: a norm then grows or shrinks by chance. Norms
    of which ln m has a standard deviation τ = norm_sd make growth differ by τ u² / 2m only, so
    within a matrix it takes ΔD > 2 / (d τ²) for a correlation to show. With decay they make it
    differ by τ m (ΔD + Λ), so it shows in any dimension from Λ of about sqrt(2 ΔD / d) / τ on. In
    the mean over n vectors, ρ is smaller by sqrt(n).

    >>> hidden_below(32), hidden_below(32, norm_sd=0.5)
    (0.0625, 0.25)
    """
    d, tau = checked("dimension", dimension, 2), checked("norm_sd", norm_sd, math.nextafter(0, 1))
    return float(2 / (d * tau * tau))


def small_spread_correlation(
    turn: float, pull: float, norm_sd: float, *, dimension: float = math.inf
) -> float:
    """Pearson's r of |growth| with turn over many vectors of nearly one norm: a closed form.

    turn: ΔD of the typical vector, in (0, 1); norm_sd: τ, the standard deviation of ln m;
    dimension: d of random updates of one length, infinite for no ρ. With standard normal a and e,
    ln m = τ a and ρ = u e / sqrt(d), and with C = (1 - Λ)(1 - ΔD), S = sin² = ΔD (2 - ΔD) and
    t = sqrt(S / d) / (1 - ΔD), the derivatives of `moved` at the typical vector give

        growth = m ((ΔD - Λ) / (1 - ΔD) - (1 - C) τ a + C t e),  proportional to z + N
        turn   = ΔD + (1 - ΔD) S (L + k L² - h e²),              L = -τ a - t e

    with N standard normal, z the first term over the deviation ω of the other two,
    k = (3 (1 - ΔD)² - 1) / 2, about 1, and h = ((3 (1 - ΔD)² - 2) / 2d + k t²), about 1 / 2d: a
    vector whose update lies along it turns less, whatever the sign. For jointly normal X and N,
    cov(|z + N|, X) = cov(N, X) P with P = 2Φ(z) - 1, and cov(|z + N|, X²) = 2 cov(N, X)² φ(z)
    (Stein's lemma, once and twice), so with A = cov(N, L), K = cov(N, e) and E = 2φ(z) + z P, the
    mean of |z + N|,

        r = (A P + 2 (k A² - h K²) φ(z)) / (sd(L + k L² - h e²) sqrt(1 + z² - E²)).

    Within .05 of simulation for τ <= .1 and ΔD <= .03, within .1 for τ <= .2 and ΔD <= .1
    (d >= 16); it fails beyond, by .3 at τ = .5 and ΔD = .2, and for lengths that differ. Its first
    term alone errs by .2 at τ = .1 and d = 32, more in fewer dimensions.

    >>> [round(small_spread_correlation(0.01, pull, 0.1), 2) for pull in (0, 0.01, 0.02)]
    [0.99, 0.13, -0.99]
    """
    turn = float(checked("turn", turn, math.nextafter(0, 1), math.nextafter(1, 0)))
    pull = float(checked("pull", pull, 0, 1))
    tau = number("norm_sd", norm_sd, minimum=0)
    if not dimension >= 2:
        raise ValueError(f"dimension: expected 2 or more, got {dimension!r}")
    cos = 1 - turn
    C, S = (1 - pull) * cos, turn * (2 - turn)
    t = math.sqrt(S / dimension) / cos
    k = (3 * cos * cos - 1) / 2
    h = (3 * cos * cos - 2) / (2 * dimension) + k * t * t
    omega = math.hypot((1 - C) * tau, C * t)
    if omega == 0:
        return math.nan
    A, K = ((1 - C) * tau * tau - C * t * t) / omega, C * t / omega
    var_L = tau * tau + t * t
    var_turn = var_L + 2 * (k * k * var_L**2 - 2 * k * h * t * t + h * h)
    z = (turn - pull) / cos / omega
    P, phi = math.erf(z / math.sqrt(2)), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    E = 2 * phi + z * P
    return (A * P + 2 * (k * A * A - h * K * K) * phi) / math.sqrt(var_turn * (1 + z * z - E * E))


def turning_point(ratio: float, r: float = 0.0) -> float:
    """Λ / ΔD at which the correlation falls to r, for norms even in ln m from 1 to `ratio`.

    ratio: largest over smallest norm, above 1. Without ρ and for small turns; ΔD is that of the
    geometric mean norm. With x = m over that norm, |growth| is proportional to |1/x - Λ/ΔD x| and
    the turn to 1/x². Raises ValueError for an r that is not passed on the way.

    >>> [round(turning_point(ratio), 3) for ratio in (1.5, 2, 4)]
    [1.014, 1.04, 1.158]
    """
    if number("ratio", ratio) <= 1:
        raise ValueError(f"ratio: expected a number above 1, got {ratio!r}")
    even = (np.arange(4000) + 0.5) / 4000
    x = ratio ** (even - 0.5)

    def at(relative_pull: float) -> float:
        return float(np.corrcoef(np.abs(1 / x - relative_pull * x), x**-2.0)[0, 1])

    low, high = 1 / ratio, float(ratio)  # all norms grow, all shrink
    if not at(high) < r < at(low):
        raise ValueError(f"r: expected from {at(high):.3f} to {at(low):.3f}, got {r!r}")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > r else (low, middle)
    return (low + high) / 2
