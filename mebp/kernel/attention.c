/* Causal grouped-query attention and its backward: a thread takes a key head at a time. */

enum { QUERIES = 64, LEAST_QUERIES = 16, SPANS = 8 };

/* Where the tensors of one attention lie: q, y and their gradients (batch, seq, heads, width), k and v (batch, seq, kv_heads, width).
   A query at t sees keys (t - window, t], all up to t where window is 0. */
typedef struct {
    int64_t batch, seq, heads, kv_heads, width, window;
    float scale, cap; /* scores s = scale q k become cap tanh(s / cap), where cap is not 0 */
} Attention;

/* Keys that a block of queries is multiplied with: all that it sees, in one of a few numbers, since a library keeps a kernel each. */
typedef struct {
    int64_t low, count;
} Span;

static inline int64_t keys_of(const Attention *a) { return whole(a->seq, LINE); }

static Span span_of(const Attention *a, int64_t first, int64_t end) {
    const int64_t keys = keys_of(a), unit = whole(pieces(keys, SPANS), LINE), seen = a->window ? first - a->window + 1 : 0;
    const int64_t low = seen > 0 ? seen / unit * unit : 0, high = lesser(keys, whole(end, unit));
    return (Span){low, high - low};
}

/* Products [first, end) of a row become e^(score - highest), the others 0; returns the sum. `slopes`, where it is not null, becomes
   d score / d (scale product), which is 1 where scores are not capped. */
static float spread(const Attention *a, float *row, int64_t count, int64_t first, int64_t end, float *slopes) {
    float scale = a->scale;
    if (a->cap > 0) {
        for (int64_t j = first; j < end; j++) {
            const float t = tanh_of(scale * row[j] / a->cap);
            row[j] = a->cap * t;
            if (slopes) slopes[j] = 1.0f - t * t;
        }
        scale = 1.0f;
    }
    const float top = largest(row + first, end - first, row[first]);
    for (int64_t j = 0; j < first; j++) row[j] = 0;
    for (int64_t j = end; j < count; j++) row[j] = 0;
    for (int64_t j = first; j < end; j++) row[j] = scale * (row[j] - top);
    return exponentials(row + first, 0, end - first, 0.0f);
}

/* The keys that the query at t sees, from those of its block's span on. */
static inline int64_t first_key(const Attention *a, Span span, int64_t t) {
    return a->window && t - a->window + 1 > span.low ? t - a->window + 1 - span.low : 0;
}

/* Queries of a block for which a thread's room is enough; 0 where there is none. */
static int64_t block_of_queries(const Attention *a, int64_t room, int64_t fixed, int64_t per_query) {
    int64_t queries = QUERIES;
    while (queries >= LEAST_QUERIES && fixed + queries * per_query > room) queries /= 2;
    return queries >= LEAST_QUERIES ? queries : 0;
}

static bool attends(const Attention *a, int64_t threads) {
    return a->width % LINE == 0 && a->batch * a->kv_heads >= threads;
}

/* y = softmax(scale q k^T) v. A thread takes a key head at a time. False where the room is too small, or there are more threads than
   key heads: nothing is computed then. */
bool attention(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *y, int64_t batch, int64_t seq, int64_t heads,
               int64_t kv_heads, int64_t width, int64_t window, float scale, float cap, uint8_t *room, int64_t nbytes) {
    const Attention a = {batch, seq, heads, kv_heads, width, window, scale, cap};
    const int64_t threads = omp_get_max_threads(), own = nbytes / threads / 64 * 64, keys = keys_of(&a), group = heads / kv_heads;
    const int64_t fixed = 2 * whole(2 * keys * width, 64) + 3 * 64;
    const int64_t queries = block_of_queries(&a, own, fixed, 6 * keys + 4 * width);
    if (!attends(&a, threads) || !queries) return false;
#pragma omp parallel
    {
        uint8_t *rest = room + own * omp_get_thread_num();
        uint16_t *keys_across = cut_off(&rest, 2 * keys * width), *values = cut_off(&rest, 2 * keys * width);
        float *scores = cut_off(&rest, 4 * queries * keys), *sums = cut_off(&rest, 4 * queries * width);
        uint16_t *typed = cut_off(&rest, 2 * queries * keys);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < batch * kv_heads; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, at = (b * seq * kv_heads + kv) * width;
            pack_across(k + at, kv_heads * width, seq, width, keys_across, keys);
            pack_along(v + at, kv_heads * width, seq, width, values, keys);
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < seq; first += queries) {
                    const int64_t end = lesser(seq, first + queries), m = end - first, from = ((b * seq + first) * heads + head) * width;
                    const Span span = span_of(&a, first, end);
                    float total[QUERIES];
                    product(m, span.count, width, heads * width, keys, span.count, false, q + from, keys_across + 2 * span.low, scores,
                            true);
                    for (int64_t i = 0; i < m; i++) {
                        float *row = scores + i * span.count;
                        total[i] = spread(&a, row, span.count, first_key(&a, span, first + i), first + i + 1 - span.low, 0);
                        for (int64_t j = 0; j < span.count; j++) typed[i * span.count + j] = to_bf16(row[j]);
                    }
                    product(m, width, span.count, span.count, width, width, false, typed, values + span.low * width, sums, true);
                    for (int64_t i = 0; i < m; i++)
                        for (int64_t j = 0; j < width; j++)
                            y[from + i * heads * width + j] = to_bf16(sums[i * width + j] / total[i]);
                }
        }
        release(true);
    }
    return true;
}

/* Sums (width, keys) to rows (seq, width). */
static void turn_back(const float *sums, int64_t keys, int64_t seq, int64_t width, uint16_t *rows, int64_t ld) {
    for (int64_t t = 0; t < seq; t++)
        for (int64_t j = 0; j < width; j++) rows[t * ld + j] = to_bf16(sums[j * keys + t]);
}

/* dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dp p)) scale; dq = ds k; dk = ds^T q, where p is computed again. As `attention`. */
bool attention_backward(const uint16_t *q, const uint16_t *k, const uint16_t *v, const uint16_t *dy, uint16_t *dq, uint16_t *dk,
                        uint16_t *dv, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads, int64_t width, int64_t window,
                        float scale, float cap, uint8_t *room, int64_t nbytes) {
    const Attention a = {batch, seq, heads, kv_heads, width, window, scale, cap};
    const int64_t threads = omp_get_max_threads(), own = nbytes / threads / 64 * 64, keys = keys_of(&a), group = heads / kv_heads;
    const int64_t fixed = 3 * whole(2 * keys * width, 64) + 2 * whole(4 * keys * width, 64) + whole(4 * keys, 64) + 9 * 64;
    const int64_t queries = block_of_queries(&a, own, fixed, 8 * keys + 6 * keys + 8 * width);
    if (!attends(&a, threads) || !queries) return false;
#pragma omp parallel
    {
        uint8_t *rest = room + own * omp_get_thread_num();
        uint16_t *keys_across = cut_off(&rest, 2 * keys * width), *values_across = cut_off(&rest, 2 * keys * width);
        uint16_t *keys_along = cut_off(&rest, 2 * keys * width);
        float *dk_sums = cut_off(&rest, 4 * keys * width), *dv_sums = cut_off(&rest, 4 * keys * width);
        float *p = cut_off(&rest, 4 * queries * keys), *dp = cut_off(&rest, 4 * queries * keys);
        uint16_t *ds = cut_off(&rest, 2 * queries * keys), *p_along = cut_off(&rest, 2 * queries * keys);
        uint16_t *ds_along = cut_off(&rest, 2 * queries * keys), *turned = cut_off(&rest, 4 * queries * width);
        float *sums = (float *)cut_off(&rest, 4 * queries * width), *slopes = cut_off(&rest, 4 * keys);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < batch * kv_heads; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, at = (b * seq * kv_heads + kv) * width, ld = heads * width;
            pack_across(k + at, kv_heads * width, seq, width, keys_across, keys);
            pack_across(v + at, kv_heads * width, seq, width, values_across, keys);
            pack_along(k + at, kv_heads * width, seq, width, keys_along, keys);
            memset(dk_sums, 0, 4 * keys * width);
            memset(dv_sums, 0, 4 * keys * width);
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < seq; first += queries) {
                    const int64_t end = lesser(seq, first + queries), m = end - first, even = whole(m, 2);
                    const int64_t from = ((b * seq + first) * heads + head) * width;
                    const Span span = span_of(&a, first, end);
                    const int64_t n = span.count;
                    product(m, n, width, ld, keys, n, false, q + from, keys_across + 2 * span.low, p, true);
                    product(m, n, width, ld, keys, n, false, dy + from, values_across + 2 * span.low, dp, true);
                    for (int64_t i = 0; i < m; i++) {
                        float *probability = p + i * n, *slope = dp + i * n, along = 0;
                        const int64_t low = first_key(&a, span, first + i), high = first + i + 1 - span.low;
                        const float total = spread(&a, probability, n, low, high, slopes);
                        for (int64_t j = 0; j < n; j++) probability[j] /= total;
#pragma omp simd reduction(+ : along)
                        for (int64_t j = 0; j < n; j++) along += probability[j] * slope[j];
                        if (cap > 0) for (int64_t j = low; j < high; j++) slope[j] = (slope[j] - along) * slopes[j] + along;
                        for (int64_t j = 0; j < n; j++) ds[i * n + j] = to_bf16(probability[j] * (slope[j] - along) * scale);
                        for (int64_t j = 0; j < n; j++) p_along[i / 2 * 2 * n + 2 * j + i % 2] = to_bf16(probability[j]);
                    }
                    if (even > m) for (int64_t j = 0; j < n; j++) p_along[m / 2 * 2 * n + 2 * j + 1] = 0;
                    pack_along(ds, n, m, n, ds_along, even);
                    product(m, width, n, n, width, width, false, ds, keys_along + span.low * width, sums, true);
                    for (int64_t i = 0; i < m; i++)
                        for (int64_t j = 0; j < width; j++) dq[from + i * ld + j] = to_bf16(sums[i * width + j]);
                    turn(dy + from, ld, m, width, turned, even);
                    product(width, n, even, even, n, keys, true, turned, p_along, dv_sums + span.low, true);
                    turn(q + from, ld, m, width, turned, even);
                    product(width, n, even, even, n, keys, true, turned, ds_along, dk_sums + span.low, true);
                }
            turn_back(dk_sums, keys, seq, width, dk + at, kv_heads * width);
            turn_back(dv_sums, keys, seq, width, dv + at, kv_heads * width);
        }
        release(true);
    }
    return true;
}
