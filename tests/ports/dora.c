/* DoRA after SPEC.md in C, in float64, one question a line in, one answer a line out.
   cc -std=c11 -O2 -o dora dora.c -lm
   An embedding is computed as a linear layer, its tokens as one-hot rows. */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <math.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char hello[] = "\"name\": \"dora.c\", \"version\": \"0.1\", \"alternatives\": {"
    "\"norm_axis\": [\"per_output\", \"per_input\"], \"norm_grad\": [\"exact\", \"detached\"], "
    "\"dropout\": [\"both\", \"low_rank\"], \"zero_vector\": \"unit\", "
    "\"layout\": [\"out_in\", \"in_out\"], \"strength\": \"interpolated\", "
    "\"scaling\": [\"alpha_over_r\", \"alpha_over_sqrt_r\"], "
    "\"embedding\": [\"per_dimension\", \"per_token\"]}";

/* --- memory of one question: what is not used is zero */

static alignas(16) char memory[1 << 28];
static size_t used;

static void *zeros(size_t bytes) {
    void *start = memory + used;
    if (bytes > sizeof memory - used - 16) fprintf(stderr, "too long a question\n"), exit(1);
    used += (bytes + 15) / 16 * 16;
    return start;
}

static double *matrix(size_t height, size_t width) { return zeros(height * width * 8); }

/* --- JSON: a value has what it holds as a chain; commas and colons count as spaces */

typedef struct Value {
    char type, *text, *key;                   /* type: its first character, '0' for all numbers */
    double number;
    struct Value *first, *next;
} Value;

static char *left;                            /* what is left of the line */
static const Value *question;

static void expect(bool as_hoped) {
    if (!as_hoped) fprintf(stderr, "not JSON: %.40s\n", left), exit(1);
}

static char peek(void) { return left += strspn(left, " \t\r\n,:"), *left; }

static char *string(void) {                   /* escapes stay as they are: no word has one */
    char *start = ++left;
    for (; *left && *left != '"'; left++) left += *left == '\\' && left[1];
    expect(*left);
    *left++ = 0;
    return start;
}

static Value *parse(void) {
    Value *value = zeros(sizeof *value), **last = &value->first;
    char *start = left, end = peek() == '[' ? ']' : '}';
    value->type = *left;
    if (*left == '"') value->text = string();
    else if (isalpha((unsigned char)*left)) left += strcspn(left, ",]} \t\r\n");
    else if (*left != '[' && *left != '{') {
        value->number = strtod(left, &left), value->type = '0';
        expect(left > start);
    } else for (left++; peek() != end || !++left; last = &(*last)->next) {
        expect(*left);
        char *key = end == '}' ? expect(*left == '"'), string() : NULL;
        *last = parse();
        (*last)->key = key;
    }
    return value;
}

static const Value *field(const char *key) {  /* NULL where it is null, too */
    for (Value *v = question->first; v; v = v->next)
        if (v->key && !strcmp(v->key, key)) return v->type == 'n' ? NULL : v;
    return NULL;
}

static bool is(const char *key, const char *word) {
    const Value *v = field(key);
    return v && v->text && !strcmp(v->text, word);
}

static double number(const char *key, double otherwise) {
    const Value *v = field(key);
    return v ? v->number : otherwise;
}

/* --- arrays */

typedef struct { double *at; size_t size, rank, shape[8]; } Array;

static double *flatten(const Value *v, double *into) {
    if (v->type != '[') return *into = v->number, into + 1;
    for (v = v->first; v; v = v->next) into = flatten(v, into);
    return into;
}

static Array array(const char *key) {         /* .at is NULL where the question has none */
    Array a = {.size = 1};
    const Value *v = field(key);
    if (!v) return a;
    for (const Value *u = v; u && u->type == '[' && a.rank < 7; u = u->first, a.rank++) {
        for (const Value *w = u->first; w; w = w->next) a.shape[a.rank]++;
        a.size *= a.shape[a.rank];
    }
    flatten(v, a.at = matrix(a.size, 1));
    return a;
}

static const double *print(const double *at, size_t rank, const size_t *shape) {
    if (!rank) return isfinite(*at) ? printf("%.17g", *at) : printf("null"), at + 1;
    for (size_t i = 0; i < *shape; i++) {
        putchar(i ? ',' : '[');
        at = print(at, rank - 1, shape + 1);
    }
    printf(*shape ? "]" : "[]");
    return at;
}

static void say(const char *key, const double *at, Array like) {
    printf(", \"%s\": ", key);
    print(at, like.rank, like.shape);
}

/* --- the question as a linear layer */

static size_t out, in, rank, rows, vectors;
static double s, t, *W0, *V, *W, *c, *g, *plain, *masked, *xs;
static Array x, stored, A, B, m, bias, mask, dy, tokens;
static bool embedding, turned, by_rows, low_rank;

#define EACH_ENTRY for (size_t i = 0; i < out; i++) for (size_t j = 0, e = i * in; j < in; j++, e++)
#define VECTOR (by_rows ? i : j)              /* the weight vector that entry (i, j) is of (D2) */
#define STORED (turned ? j * out + i : e)     /* where the entry stands in W0 as it came (L1) */

static void read_question(void) {
    x = array("x"), stored = array("W0"), A = array("A"), B = array("B"), m = array("m");
    bias = array("bias"), mask = array("mask"), dy = array("dy"), tokens = array("tokens");
    embedding = is("kind", "embedding"), turned = embedding || is("layout", "in_out");
    low_rank = is("dropout", "low_rank");
    by_rows = embedding ? is("embedding", "per_dimension") : !is("norm_axis", "per_input");
    rank = A.shape[0], out = B.shape[0], in = stored.size / out, vectors = by_rows ? out : in;
    s = number("alpha", 0) / (is("scaling", "alpha_over_sqrt_r") ? sqrt(rank) : rank);
    s = number("scale", s), t = number("strength", 1);                            /* S1, S2 */
    rows = embedding ? tokens.size : x.at ? x.size / in : 0;
    xs = embedding ? matrix(rows, in) : x.at;
    for (size_t n = 0; n < rows && embedding; n++) xs[n * in + (size_t)tokens.at[n]] = 1; /* E2 */
    W0 = matrix(out, in);
    EACH_ENTRY W0[e] = stored.at[STORED];
}

static void norms(const double *of) {
    c = matrix(vectors, 1);
    EACH_ENTRY c[VECTOR] += of[e] * of[e];                                        /* D3, I1 */
    for (size_t k = 0; k < vectors; k++) c[k] = sqrt(c[k]);
}

/* V, c, W and y = x plainᵀ + (x ∘ mask) maskedᵀ + bias. */
static void weigh(void) {
    read_question();
    V = matrix(out, in), W = matrix(out, in), g = matrix(vectors, 1);
    plain = matrix(out, in), masked = matrix(out, in);
    EACH_ENTRY {
        for (size_t k = 0; k < rank; k++) V[e] += s * B.at[i * rank + k] * A.at[k * in + j];
        V[e] += W0[e];                                                            /* D1 */
    }
    norms(V);
    for (size_t k = 0; k < vectors; k++) g[k] = c[k] > 0 ? m.at[k] / c[k] : 1;    /* Z2 */
    EACH_ENTRY {
        W[e] = (1 - t) * W0[e] + t * g[VECTOR] * V[e];                            /* D4, S3 */
        plain[e] = !mask.at ? W[e] : low_rank ? g[VECTOR] * W0[e] : W0[e];
        masked[e] = !mask.at ? 0 : low_rank ? g[VECTOR] * (V[e] - W0[e]) : W[e] - W0[e]; /* P1 */
    }
}

/* --- the operations */

static void init_magnitude(void) {
    read_question(), norms(W0);
    say("m", c, (Array){.rank = 1, .shape = {vectors}});
}

static void forward(void) {
    weigh();
    double *y = matrix(rows, out);
    Array like = embedding ? tokens : x;
    if (embedding) like.shape[like.rank++] = out;
    else like.shape[like.rank - 1] = rows ? out : 0;
    for (size_t n = 0; n < rows; n++) EACH_ENTRY {
        double through = mask.at ? mask.at[n * in + j] : 1;
        y[n * out + i] += xs[n * in + j] * (plain[e] + through * masked[e]);      /* F1 */
        if (bias.at && !j) y[n * out + i] += bias.at[i];                          /* B1 */
    }
    say("y", y, like);
}

static void backward(void) {
    weigh();
    double *G0 = matrix(out, in), *G1 = matrix(out, in), *dm = matrix(vectors, 1);
    double *dA = matrix(rank, in), *dB = matrix(out, rank), *dx = matrix(rows, in);
    double *dbias = matrix(out, 1);
    for (size_t n = 0; n < rows; n++) EACH_ENTRY {
        double through = mask.at ? mask.at[n * in + j] : 1, d = dy.at[n * out + i];
        G0[e] += t * d * xs[n * in + j], G1[e] += t * d * xs[n * in + j] * through;
        dx[n * in + j] += d * (plain[e] + through * masked[e]);                   /* G4, P2 */
        if (!j) dbias[i] += d;                                                    /* G5 */
    }
    EACH_ENTRY if (c[VECTOR] > 0)                                                 /* G1, P2 */
        dm[VECTOR] += (G1[e] * V[e] + low_rank * (G0[e] - G1[e]) * W0[e]) / c[VECTOR];
    EACH_ENTRY {
        double radial = is("norm_grad", "exact") && c[VECTOR] > 0 ? dm[VECTOR] / c[VECTOR] : 0;
        double dV = g[VECTOR] * (G1[e] - V[e] * radial);                          /* G2 */
        for (size_t k = 0; k < rank; k++) {                                       /* G3 */
            dA[k * in + j] += s * B.at[i * rank + k] * dV;
            dB[i * rank + k] += s * dV * A.at[k * in + j];
        }
    }
    if (!embedding) say("dx", dx, x);
    say("dA", dA, A), say("dB", dB, B), say("dm", dm, m);
    if (bias.at) say("dbias", dbias, bias);
}

static void merge(void) {
    weigh();
    double *merged = matrix(out, in);
    EACH_ENTRY merged[STORED] = W[e];
    say("W", merged, stored);
}

int main(void) {
    char *line = NULL;
    for (size_t room = 0; getline(&line, &room, stdin) > 0; memset(memory, 0, used), used = 0) {
        left = line, question = parse();
        printf("{\"id\": %.17g", number("id", 0));
        if (is("op", "hello")) printf(", %s", hello);
        else if (is("op", "init_magnitude")) init_magnitude();
        else if (is("op", "forward")) forward();
        else if (is("op", "backward")) backward();
        else if (is("op", "merge")) merge();
        else printf(", \"unsupported\": \"op\"");
        puts("}"), fflush(stdout);
    }
}
