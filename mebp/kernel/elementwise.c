/* Norms, gated activations and rotation: bf16 in and out, fp32 in between, each value read, written and rounded once. */

static inline float dot(const uint16_t *restrict a, const uint16_t *restrict b, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; j++) sum += from_bf16(a[j]) * from_bf16(b[j]);
    return sum;
}

/* y (rows, cols) = x r (w + offset), r = 1 / sqrt(mean(x^2) + eps) */
void norm(const uint16_t *x, const uint16_t *w, uint16_t *y, int64_t rows, int64_t cols, float eps, float offset) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const uint16_t *restrict in = x + i * cols;
        uint16_t *restrict out = y + i * cols;
        const float r = 1.0f / sqrtf(dot(in, in, cols) / (float)cols + eps);
        for (int64_t j = 0; j < cols; j++) out[j] = to_bf16(from_bf16(in[j]) * r * (from_bf16(w[j]) + offset));
    }
}

/* dx (+)= r (g - xhat mean(g xhat)), g = dy (w + offset), xhat = x r; dx may be dy */
void norm_backward(const uint16_t *x, const uint16_t *w, const uint16_t *dy, uint16_t *dx, int64_t rows, int64_t cols, float eps,
                   float offset, bool add) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const uint16_t *in = x + i * cols, *up = dy + i * cols;
        uint16_t *out = dx + i * cols;
        const float r = 1.0f / sqrtf(dot(in, in, cols) / (float)cols + eps);
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < cols; j++) along += from_bf16(up[j]) * (from_bf16(w[j]) + offset) * from_bf16(in[j]);
        const float by = r * r * along / (float)cols; /* mean(g xhat) r */
#pragma omp simd
        for (int64_t j = 0; j < cols; j++) {
            const float g = from_bf16(up[j]) * (from_bf16(w[j]) + offset), value = r * (g - from_bf16(in[j]) * by);
            out[j] = to_bf16(value + (add ? from_bf16(out[j]) : 0.0f));
        }
    }
}

enum { SILU, GELU_TANH };

/* e^-|x| */
static inline float decay(float x) { return exp_down(x < 0 ? x : -x); }

static inline float sigmoid(float x) {
    const float e = decay(x);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

static inline float tanh_of(float x) {
    const float e = decay(2.0f * x), t = (1.0f - e) / (1.0f + e);
    return x < 0 ? -t : t;
}

/* gelu by tanh: x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3) */
static inline float gelu_inner(float x) { return 0.7978845608f * x * (1.0f + 0.044715f * x * x); }

static inline float activated(float x, int which) {
    return which == SILU ? x * sigmoid(x) : 0.5f * x * (1.0f + tanh_of(gelu_inner(x)));
}

static inline float slope(float x, int which) {
    if (which == SILU) {
        const float s = sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
    const float t = tanh_of(gelu_inner(x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
}

enum { PART = 4096 }; /* elements that a thread takes at a time */

/* Over parts of `count` elements, a thread each: a block at every j. Operands may be one another, never overlap otherwise. */
#define EACH(...)                                                                                    \
    _Pragma("omp parallel for schedule(static)")                                                     \
    for (int64_t part = 0; part < count; part += PART) {                                             \
        const int64_t end = lesser(count, part + PART);                                              \
        _Pragma("omp simd")                                                                           \
        for (int64_t j = part; j < end; j++) __VA_ARGS__                                               \
    }

/* y = act(gate) up; and the gradients dy up act'(gate) in the gate's place, dy act(gate) in that of up */
#define GLU(NAME, WHICH)                                                                             \
void glu_##NAME(const uint16_t *gate, const uint16_t *up, uint16_t *y, int64_t count) {              \
    EACH({ y[j] = to_bf16(activated(from_bf16(gate[j]), WHICH) * from_bf16(up[j])); })               \
}                                                                                                    \
void glu_backward_##NAME(const uint16_t *dy, uint16_t *gate, uint16_t *up, int64_t count) {          \
    EACH({                                                                                           \
        const float g = from_bf16(gate[j]), d = from_bf16(dy[j]), u = from_bf16(up[j]);              \
        gate[j] = to_bf16(d * u * slope(g, WHICH));                                                  \
        up[j] = to_bf16(d * activated(g, WHICH));                                                   \
    })                                                                                               \
}

GLU(silu, SILU)
GLU(gelu_tanh, GELU_TANH)

/* y (rows, heads, width) = x with the first 2 half columns of a head rotated by the angles of its position (row % seq): (x1 c - x2 s,
   x2 c + x1 s), s times `sign`. y may be x. cos and sin are (seq, half). */
void rotate(const uint16_t *x, uint16_t *y, const uint16_t *cos_of, const uint16_t *sin_of, int64_t rows, int64_t seq, int64_t heads,
            int64_t width, int64_t half, float sign) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const uint16_t *c = cos_of + (i % seq) * half, *s = sin_of + (i % seq) * half;
        for (int64_t h = 0; h < heads; h++) {
            const uint16_t *in = x + (i * heads + h) * width;
            uint16_t *out = y + (i * heads + h) * width;
            if (in != out) memcpy(out + 2 * half, in + 2 * half, 2 * (width - 2 * half));
#pragma omp simd
            for (int64_t j = 0; j < half; j++) {
                const float a = from_bf16(in[j]), b = from_bf16(in[half + j]);
                const float cosine = from_bf16(c[j]), sine = sign * from_bf16(s[j]);
                out[j] = to_bf16(a * cosine - b * sine);
                out[half + j] = to_bf16(b * cosine + a * sine);
            }
        }
    }
}
