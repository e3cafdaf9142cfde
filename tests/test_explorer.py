"""The explorer in a real browser: dragged, slid, typed at, and its numbers against NumPy's."""

import itertools
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from minidora import dora, lora
from minidora.analysis import changes, correlate
from minidora.analysis.decay import moved, moved_magnitude
from minidora.analysis.predictions import correlations_of, untrained

EXPLORER = Path(__file__).parent.parent / "lessons" / "explorer"
PAGE = EXPLORER / "index.html"
METHODS = ("full", "lora", "dora")
UNIT, LEFT, TOP = 50, -2.5, 5  # of the plane's viewBox, 400 wide
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    reason = "needs playwright: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens the page from its file; whatever it complains of, or fetches elsewhere, fails."""
    pages, problems = [], []

    def open_it(**options):
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 1000}, **options})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", lambda r: r.url.startswith("file:") or problems.append(r.url))
        page.goto(PAGE.as_uri())
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert problems == []


@pytest.fixture
def page(open_page):
    return open_page()


def value(page, name, within="body"):
    return float(page.locator(f"{within} [data-of={name}]").first.get_attribute("data-value"))


def row(page, table, method, columns):
    return [value(page, column, f"#{table} .{method}") for column in columns]


def vector(page, name):
    handle = page.locator(f"#handle-{name}")
    return np.array([float(handle.get_attribute(f"data-{axis}")) for axis in "xy"])


def slide(page, name, number):
    page.locator(f"#{name}").fill(f"{number:g}")


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, name, dx, dy):
    """Drag a handle by so many of the plane's units."""
    page.locator("#plane").scroll_into_view_if_needed()
    x, y = centre(page.locator(f"#handle-{name} .ring"))
    unit = page.locator("#plane").bounding_box()["width"] / 400 * UNIT
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx * unit / 2, y, steps=2)
    page.mouse.move(x + dx * unit, y - dy * unit, steps=3)
    page.mouse.up()
    page.mouse.move(x, y)  # let go: moves nothing


# The plane


def steps(page):
    """What minidora says one step does: {method: (weight before, after)}, and DoRA's gradients."""
    w0, d, G = (vector(page, name) for name in ("w0", "d", "G"))
    W0, B = w0[None], np.array([[np.linalg.norm(d)]])
    A, m, rate = d[None] / B, np.array([value(page, "m")]), value(page, "rate")
    norm_grad = "detached" if page.locator("#detached").is_checked() else "exact"
    W = dora.dora_weight(W0, A, B, m, 1.0)
    one = np.ones((1, 1))  # y = x @ W.T with x = G: dy.T @ x is G
    grads = dora.dora_backward(one, dora.dora_forward(G[None], W0, A, B, m, 1.0)[1],
                               norm_grad=norm_grad)  # fmt: skip
    plain = lora.lora_backward(one, lora.lora_forward(G[None], W0, A, B, 1.0)[1])
    stepped = A - rate * grads.dA, B - rate * grads.dB, m - rate * grads.dm
    moves = {
        "full": (W, W - rate * G),
        "lora": (W0 + B @ A, W0 + (B - rate * plain.dB) @ (A - rate * plain.dA)),
        "dora": (W, dora.dora_weight(W0, *stepped, 1.0)),
    }
    return moves, grads


def check_plane(page):
    moves, grads = steps(page)
    (V, _), (W, _), G = moves["lora"], moves["dora"], vector(page, "G")
    unit = V[0] / np.linalg.norm(V)
    radial = unit * (unit @ G)
    shown = {"w0": vector(page, "w0"), "V": V, "W": W, "radial": radial, "tangential": G - radial}
    expected = {name: np.linalg.norm(shown[name]) for name in shown} | {"dm": grads.dm[0]}
    got = {name: value(page, name) for name in expected}
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for method, (before, after) in moves.items():
        move = changes(before, after, "per_output")
        angle = math.degrees(math.acos(1 - move.turn[0]))
        expected = [np.linalg.norm(after), move.growth[0], angle, move.turn[0]]
        got = row(page, "steps", method, ("norm", "growth", "angle", "turn"))
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-9), method
        # the mark is drawn where the step leads
        box = page.eval_on_selector(
            f"#drawing .shape.{method}", "e => [e.getBBox().x + e.getBBox().width / 2]"
        )
        assert box == pytest.approx([(after[0, 0] - LEFT) * UNIT], abs=0.02)


def test_a_vector_is_dragged_and_the_numbers_are_minidoras(page):
    check_plane(page)
    for name, by in (("w0", (0.8, -0.6)), ("d", (-0.5, 1.0)), ("G", (-1.2, 0.9))):
        before = vector(page, name)
        drag(page, name, *by)
        assert vector(page, name) - before == pytest.approx(by, abs=0.03)
        check_plane(page)
    x, y = vector(page, "w0")
    at = page.locator("#handle-w0").get_attribute("transform")
    numbers = [float(number) for number in re.findall(r"[-\d.]+", at)]
    assert numbers == pytest.approx([(x - LEFT) * UNIT, (TOP - y) * UNIT])


def test_what_is_dragged_out_of_the_picture_stays_at_its_edge(page):
    drag(page, "w0", 40, -40)
    edge = [5.2, -1.5]
    assert vector(page, "w0") == pytest.approx(edge)
    assert vector(page, "w0") + vector(page, "d") == pytest.approx(edge)
    page.locator("#reset").click()
    drag(page, "G", -40, 0)
    W = steps(page)[0]["dora"][0][0]
    assert (W + vector(page, "G"))[0] == pytest.approx(-2.2)


def test_arrow_keys_move_a_vector_and_do_not_scroll(page):
    page.locator("#handle-w0").focus()
    start, scrolled = vector(page, "w0"), page.evaluate("scrollY")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowLeft", "Shift+ArrowUp"):
        page.keyboard.press(key)
    assert vector(page, "w0") - start == pytest.approx([0.19, -0.09])
    assert page.evaluate("scrollY") == scrolled
    text = page.locator("#handle-w0").get_attribute("aria-valuetext")
    assert text == "x {:.2f}, y {:.2f}".format(*vector(page, "w0"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "handle-d"
    page.keyboard.press("ArrowUp")
    check_plane(page)


def test_the_magnitude_is_slid_by_mouse_and_by_key(page):
    box = page.locator("#m").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    assert 4 < value(page, "m") < 4.6
    check_plane(page)
    m = value(page, "m")
    page.keyboard.press("ArrowLeft")
    assert value(page, "m") == pytest.approx(m - 0.01)
    for m, rate in itertools.product((-1.5, 0, 1), (0.05, 1)):
        slide(page, "m", m)
        slide(page, "rate", rate)
        check_plane(page)
    assert float(page.locator("#drawing circle").get_attribute("r")) == UNIT


def test_the_gradient_across_and_along_the_weight(page):
    """What `Try this 1` lets one find, exact and detached."""
    growth, turn = "growth", "turn"
    page.locator("#across").click()
    check_plane(page)
    assert row(page, "steps", "dora", [growth])[0] == pytest.approx(0, abs=1e-12)
    assert all(row(page, "steps", method, [growth])[0] > 1e-3 for method in ("full", "lora"))
    assert all(row(page, "steps", method, [turn])[0] > 1e-3 for method in METHODS)
    page.locator("#along").click()
    check_plane(page)
    for method in ("full", "dora"):
        assert row(page, "steps", method, [turn])[0] == pytest.approx(0, abs=1e-12)
    assert row(page, "steps", "lora", [turn])[0] > 1e-4
    colour = "getComputedStyle(document.querySelector('#drawing .shape.dora')).fill"
    exact = page.evaluate(colour)
    page.locator("#detached").check()
    check_plane(page)
    assert row(page, "steps", "dora", [turn])[0] > 1e-4 and page.evaluate(colour) != exact


def test_the_other_buttons_and_no_update_at_all(page):
    start = {name: vector(page, name) for name in ("w0", "d", "G")}
    page.locator("#as-started").click()
    assert value(page, "m") == pytest.approx(value(page, "w0"))
    page.locator("#as-lora").click()
    assert value(page, "m") == pytest.approx(value(page, "V"))
    page.evaluate("Plane.state.d = [0, 0]")
    page.locator("#as-started").click()  # B = 0: LoRA moves along A alone, kept from before
    G, rate, d = vector(page, "G"), value(page, "rate"), start["d"]
    along = d / np.linalg.norm(d) * (G @ d) / np.linalg.norm(d)
    move = changes(start["w0"][None], (start["w0"] - rate * along)[None], "per_output")
    got = row(page, "steps", "lora", ("growth", "turn"))
    assert got == pytest.approx([move.growth[0], move.turn[0]], rel=1e-9)
    page.locator("#detached").check()
    page.locator("#reset").click()
    assert not page.locator("#detached").is_checked()
    assert all((vector(page, name) == start[name]).all() for name in start)


# The cloud


def lehmer(seed):
    """The page's uniform numbers, written anew."""
    x = 12345 + seed
    while True:
        x = 48271 * x % (2**31 - 1)
        yield x / (2**31 - 1)


def directions(uniform, count, dimension=256):
    pairs = np.array(list(itertools.islice(uniform, count * dimension))).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(pairs[:, 0])), 2 * np.pi * pairs[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    drawn = normal.reshape(count, dimension)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def check_cloud(page, seed=1):
    names = ("decay", "length", "spread", "step", "count")
    decay, u, spread, p, count = (value(page, name) for name in names)
    uniform = lehmer(seed)
    unit, e = (directions(uniform, int(count)) for _ in range(2))
    m = np.geomspace(1 / spread, spread, int(count))
    W0 = m[:, None] * unit
    V = W0 + u * e
    weights = {
        "full": (1 - decay) * W0 + u * e,
        "lora": V,
        "dora": ((1 - decay) * m + p)[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True),
    }
    radial = u * (unit * e).sum(1)
    laws = {
        "full": moved(m, u, decay, radial),
        "lora": moved(m, u, 0, radial),
        "dora": moved_magnitude(m, u, decay, p, radial),
    }
    last = page.evaluate("Cloud.vectors.W0.slice(-2)")
    np.testing.assert_allclose(last, W0[-2:], rtol=1e-11, atol=1e-13)
    for method, W in weights.items():
        points = page.evaluate(f"Cloud.points.{method}")
        move = changes(W0, W, "per_output")
        for expected in (move, laws[method]):
            np.testing.assert_allclose(points["dD"], expected.turn, rtol=1e-10)
            np.testing.assert_allclose(points["dM"], abs(expected.growth), rtol=1e-9, atol=1e-12)
        r, slope, ratio = row(page, "methods", method, ("r", "slope", "ratio"))
        line = correlate(np.array(points["dD"]), np.array(points["dM"]))
        if np.ptp(points["dM"]) > 1e-9:
            assert (r, slope) == pytest.approx((line.r, line.slope), rel=1e-9, abs=1e-12)
        else:
            assert math.isnan(r)
        middle = np.sort(move.turn)[int(count) // 2]
        expected = {"full": decay / middle, "lora": 0, "dora": decay / p}[method]
        assert ratio == pytest.approx(expected)


def test_the_clouds_numbers_are_numpys(page):
    check_cloud(page)
    for settings in (
        {"decay": 0.2}, {"length": 1, "spread": 3}, {"decay": 0.6, "length": 0.05, "step": 0.5},
        {"count": 32, "decay": 0.01}, {"count": 512, "length": 0.3}, {"spread": 1},
    ):  # fmt: skip
        for name, number in settings.items():
            slide(page, name, number)
            assert value(page, name) == pytest.approx(number)
        check_cloud(page)
    page.locator("#redraw").click()
    check_cloud(page, seed=2)


def test_the_slope_turns_where_the_law_says(page):
    def r(method):
        return value(page, "r", f"#methods .{method}")

    slopes = {method: [] for method in METHODS}
    for decay in (0, 0.05, 0.3, 0.6):
        slide(page, "decay", decay)
        for method in METHODS:
            slopes[method].append(value(page, "slope", f"#methods .{method}"))
    assert slopes["full"][0] > 0.3 and slopes["full"][-1] < -0.3
    assert slopes["dora"][1] > 0.1 and slopes["dora"][-1] < -0.3
    assert slopes["lora"] == slopes["lora"][:1] * 4 and slopes["lora"][0] > 0.3
    passed = 0
    for length, step in ((0.25, 0.05), (0.5, 0.1), (0.8, 0.3)):
        slide(page, "length", length)
        slide(page, "step", step)
        for decay in np.arange(0.01, 0.6, 0.02):
            slide(page, "decay", decay)
            for method in ("full", "dora"):
                ratio = value(page, "ratio", f"#methods .{method}")
                if not 0.85 < ratio < 1.15:
                    assert (r(method) > 0) == (ratio < 1), (method, length, step, decay)
                    passed += 1
    assert passed > 100
    slide(page, "spread", 1)  # no norms that differ: what is left falls
    assert r("lora") < -0.9 and math.isnan(r("dora"))


def test_the_pages_random_vectors_behave_as_numpys(page):
    """Its correlation, over seeds, is that of the control drawn by NumPy's generator."""
    drawn = []
    for _ in range(12):
        drawn.append([*row(page, "methods", "full", ["r"])])
        page.locator("#redraw").click()
    norms, rng = np.geomspace(0.5, 2, 128)[None], np.random.default_rng(0)
    control = [correlations_of(untrained(norms, [0.5], [0], 256, rng)).within for _ in range(30)]
    error = np.std(control) * math.sqrt(1 / 12 + 1 / 30)
    assert abs(np.mean(drawn) - np.mean(control)) < 4 * error
    assert 0.4 < np.std(drawn) / np.std(control) < 2


def test_what_is_drawn_are_the_points_and_their_line(page):
    slide(page, "decay", 0.3)
    for method in METHODS:
        page.locator(f"#methods input[value={method}]").check()
        marks = page.eval_on_selector_all(
            f"#cloud .shape.{method}",
            "all => all.map(e => e.getBBox()).map(b => [b.x + b.width / 2, b.y + b.height / 2])",
        )
        points = page.evaluate(f"Cloud.points.{method}")
        ticks = page.eval_on_selector_all(
            "#cloud text[text-anchor=end]",
            "all => all.map(e => [+e.getAttribute('x'), +e.getAttribute('y'), +e.textContent])",
        )
        x_axis = np.array([[x - 8, number] for x, y, number in ticks if y == 308])
        y_axis = np.array([[y - 5, number] for x, y, number in ticks if x == 50])
        assert len(marks) == 128 and 3 <= len(x_axis) <= 7 and 3 <= len(y_axis) <= 7
        to_x, to_y = (np.polyfit(*axis.T, 1) for axis in (x_axis, y_axis))
        read = np.array(marks).T
        assert np.polyval(to_x, read[0]) == pytest.approx(np.array(points["dD"]), abs=1e-3)
        if method != "dora":  # a triangle's box is not centred on its point
            assert np.polyval(to_y, read[1]) == pytest.approx(np.array(points["dM"]), abs=5e-3)
        d = page.locator("#cloud .fit").get_attribute("d")
        x0, y0, x1, y1 = (float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", d))
        ends = np.polyval(to_x, [x0, x1])
        line = correlate(*(np.array(points[name]) for name in ("dD", "dM")))
        expected = line.intercept + line.slope * ends
        assert np.polyval(to_y, [y0, y1]) == pytest.approx(expected, abs=1e-3)
        r = value(page, "r", f"#methods .{method}")
        said = page.locator("#cloud-says").inner_text()
        assert said.endswith(f"r = {r:+.2f}.".replace("-", "−"))


# The page


def test_the_page_is_small_and_needs_nothing_else():
    files = [path for path in EXPLORER.iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    texts = [path.read_text(encoding="utf-8") for path in files]
    lines = [line for text in texts for line in text.splitlines()]
    assert len(lines) <= 700 and max(map(len, lines)) <= 100
    for text in texts:
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|type=.module|^import |\bfetch\(|XMLHttp|\beval\(", text, re.M
        )
    for target in re.findall(r'(?:href|src)="([^"]+)"', PAGE.read_text(encoding="utf-8")):
        assert (EXPLORER / target).exists(), target


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(open_page, scheme):
    page = open_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.locator("summary").click()
    for spread in (1, 3):
        slide(page, "spread", spread)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    small = page.eval_on_selector_all(
        "button, input, .handle .reach",
        "all => all.map(e => e.getBoundingClientRect()).filter(b => b.height < 18).length",
    )
    assert small == 0


def luminance(colour):
    channels = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_light_and_dark_differ_and_both_can_be_read(open_page):
    pytest.importorskip("matplotlib", reason="needs matplotlib: the figures' own colours")
    from matplotlib.colors import to_rgb

    from minidora.plotting.style import METHOD_COLORS

    seen = {}
    style = "(e, [name]) => getComputedStyle(e)[name]"
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        paper = page.eval_on_selector("body", style, ["backgroundColor"])
        raised = page.eval_on_selector("#plane", style, ["backgroundColor"])
        for selector in ("body", ".note", "figcaption", "dt", "small", "button"):
            ink = page.eval_on_selector(selector, style, ["color"])
            assert min(contrast(ink, paper), contrast(ink, raised)) >= 4.5, (scheme, selector)
        for method, label in zip(METHODS, ("FT", "LoRA", "DoRA"), strict=True):
            fill = page.eval_on_selector(f"#steps .shape.{method}", style, ["fill"])
            rgb = [round(255 * part) for part in to_rgb(METHOD_COLORS[label])]
            assert fill == f"rgb({rgb[0]}, {rgb[1]}, {rgb[2]})"
            assert min(contrast(fill, paper), contrast(fill, raised)) >= 3, (scheme, method)
        for selector in (".vector", ".strong", ".ring"):
            stroke = page.eval_on_selector(f"#plane {selector}", style, ["stroke"])
            assert contrast(stroke, raised) >= 3
        seen[scheme] = paper
    assert luminance(seen["light"]) > 0.9 and luminance(seen["dark"]) < 0.05
    marks = page.eval_on_selector_all("#steps .shape", "all => all.map(e => e.getAttribute('d'))")
    commands = {tuple(re.findall("[a-zA-Z]", d)) for d in marks}
    assert len(commands) == 3  # a circle, a square, a triangle


def test_everything_can_be_reached_named_and_seen_by_keyboard(page):
    named = page.eval_on_selector_all(
        "input, button, [role=slider]",
        "all => all.map(e => e.getAttribute('aria-label') || e.closest('label, button').innerText)",
    )
    assert len(named) == 3 + 2 + 1 + 5 + 5 + 3 + 1 and all(name.strip() for name in named)
    sliders = page.eval_on_selector_all(
        "[role=slider]", "all => all.map(e => [e.getAttribute('aria-valuenow'), e.tabIndex])"
    )
    assert all(float(now) > 0 and index == 0 for now, index in sliders)
    reached, unseen = [], []
    for _ in range(19):
        page.keyboard.press("Tab")
        place, outline, ring = page.evaluate(
            "(e => [e.id || e.value || e.tagName, getComputedStyle(e).outlineStyle,"
            " e.querySelector('.ring') && getComputedStyle(e.querySelector('.ring')).strokeWidth])"
            "(document.activeElement)"
        )
        reached.append(place)
        if outline == "none" and ring != "5px":
            unseen.append(place)
    handles = ["handle-w0", "handle-d", "handle-G"]
    controls = ["m", "rate", "detached", "along", "across", "as-started", "as-lora", "reset"]
    cloud = ["decay", "length", "spread", "step", "count", "full", "redraw", "SUMMARY"]
    assert reached == handles + controls + cloud
    assert unseen == []
    page.locator("#methods input[value=full]").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#cloud .shape.lora").count() == 128
