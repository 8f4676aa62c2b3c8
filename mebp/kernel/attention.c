/* Causal grouped-query attention and its backward, a block of queries and a block of keys at a time: what a thread needs of memory
   does not grow with the sequence, and keys that no query of a block sees are skipped. */

enum { QUERIES = 64, FEW_KEYS = 128, MANY_KEYS = 256, FEW = 1024, TALL_BYTES = 1 << 19 };

/* Queries [first, first + count) of each sequence and keys [0, first + count): q, y and their gradients are (batch, count, heads, width),
   k and v (batch, first + count, kv_heads, width). A query at t sees keys (t - window, t], all up to t where window is 0. */
typedef struct {
    int64_t batch, first, count, heads, kv_heads, width, window;
    float scale, cap; /* scores s = scale q k become cap tanh(s / cap), where cap is not 0 */
} Attention;

static inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t keys_of(const Attention *a) { return a->first + a->count; }
static inline int64_t key_block(const Attention *a) { return lesser(whole(keys_of(a), LINE), keys_of(a) > FEW ? MANY_KEYS : FEW_KEYS); }

/* Queries that go through all keys together: so many that what is packed of a block of keys pays, in multiples of a block. */
static int64_t tall_block(const Attention *a, int64_t bytes_per_query, int64_t least_pieces) {
    int64_t queries = whole(a->count, QUERIES);
    while (queries > QUERIES && (queries * bytes_per_query > TALL_BYTES || pieces(a->count, queries) < least_pieces))
        queries = whole(queries / 2, QUERIES);
    return queries;
}

/* The first key that the query at t (its place in the sequence) sees. */
static inline int64_t first_key(const Attention *a, int64_t t) { return a->window ? greater(0, t - a->window + 1) : 0; }

/* Products [low, high) become scores. `slopes`, where it is not null, becomes d score / d (scale product), which is 1 where scores are
   not capped. */
static void to_scores(const Attention *a, float *row, int64_t low, int64_t high, float *slopes) {
    if (a->cap <= 0) {
        for (int64_t j = low; j < high; j++) row[j] *= a->scale;
        return;
    }
    for (int64_t j = low; j < high; j++) {
        const float t = tanh_of(a->scale * row[j] / a->cap);
        row[j] = a->cap * t;
        if (slopes) slopes[j] = 1.0f - t * t;
    }
}

/* Some queries of one head, and what has become of them after the keys so far: sums (count, width) of e^(score - top) v, and of
   e^(score - top). */
typedef struct {
    float *sums, *top, *total;
} Progress;

/* Let `m` queries, the first at `t`, see keys [at, at + n), packed. */
static void see(const Attention *a, const uint16_t *q, int64_t m, int64_t t, int64_t at, int64_t n, const uint16_t *keys,
                const uint16_t *values, float *scores, uint16_t *typed, Progress so_far) {
    const int64_t width = a->width;
    product(m, n, width, a->heads * width, n, n, false, q, keys, scores, true);
    for (int64_t i = 0; i < m; i++) {
        float *row = scores + i * n, *sums = so_far.sums + i * width;
        uint16_t *p = typed + i * n;
        const int64_t low = greater(0, first_key(a, t + i) - at), high = lesser(n, t + i + 1 - at);
        memset(p, 0, 2 * n);
        if (high <= low) continue;
        to_scores(a, row, low, high, 0);
        const float top = largest(row + low, high - low, so_far.top[i]), shrunk = exp_down(so_far.top[i] - top);
        so_far.total[i] = so_far.total[i] * shrunk + exponentials(row + low, p + low, high - low, top);
        so_far.top[i] = top;
        if (shrunk != 1.0f)
            for (int64_t j = 0; j < width; j++) sums[j] *= shrunk;
    }
    product(m, width, n, n, width, width, true, typed, values, so_far.sums, true);
}

/* Threads for which the room is enough; each has `own` bytes of it. */
static int64_t threads_in(int64_t nbytes, int64_t own, int64_t items) {
    return lesser(lesser(omp_get_max_threads(), items), nbytes / own);
}

/* y = softmax(scale q k^T) v, and `lse` (batch, count, heads) the logarithm of the sum of e^score. A thread takes some queries of the
   heads that share a key head. False where the room is too small: nothing is computed then. */
bool attention(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *y, float *lse, int64_t batch, int64_t first,
               int64_t count, int64_t heads, int64_t kv_heads, int64_t width, int64_t window, float scale, float cap, uint8_t *room,
               int64_t nbytes) {
    const Attention a = {batch, first, count, heads, kv_heads, width, window, scale, cap};
    const int64_t group = heads / kv_heads, keys = keys_of(&a), step = key_block(&a);
    const int64_t tall = tall_block(&a, 4 * group * width, pieces(2 * omp_get_max_threads(), batch * kv_heads));
    const int64_t parts = pieces(count, tall), items = batch * kv_heads * parts;
    const int64_t own = 2 * whole(2 * step * width, 64) + whole(4 * group * tall * width, 64) + 2 * whole(4 * group * tall, 64) +
                        whole(4 * QUERIES * step, 64) + whole(2 * QUERIES * step, 64);
    const int64_t threads = threads_in(nbytes, own, items);
    if (width % LINE || !threads) return false;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *rest = room + own * omp_get_thread_num();
        uint16_t *keys_across = cut_off(&rest, 2 * step * width), *values = cut_off(&rest, 2 * step * width);
        float *sums = cut_off(&rest, 4 * group * tall * width);
        float *top = cut_off(&rest, 4 * group * tall), *total = cut_off(&rest, 4 * group * tall);
        float *scores = cut_off(&rest, 4 * QUERIES * step);
        uint16_t *typed = cut_off(&rest, 2 * QUERIES * step);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < items; item++) {
            const int64_t part = parts - 1 - item / (batch * kv_heads), pair = item % (batch * kv_heads); /* the longest first */
            const int64_t b = pair / kv_heads, kv = pair % kv_heads, begin = part * tall, end = lesser(count, begin + tall);
            memset(sums, 0, 4 * group * tall * width);
            memset(total, 0, 4 * group * tall);
            for (int64_t i = 0; i < group * tall; i++) top[i] = -FLT_MAX;
            for (int64_t at = first_key(&a, first + begin) / step * step; at < first + end; at += step) {
                const int64_t here = lesser(step, keys - at), n = whole(here, LINE), from = ((b * keys + at) * kv_heads + kv) * width;
                pack_across(k + from, kv_heads * width, here, width, keys_across, n);
                pack_along(v + from, kv_heads * width, here, width, values, n);
                for (int64_t g = 0; g < group; g++)
                    for (int64_t i = begin; i < end; i += QUERIES) {
                        const int64_t m = lesser(QUERIES, end - i), t = first + i, line = g * tall + i - begin;
                        if (at >= t + m || at + here <= first_key(&a, t)) continue;
                        const Progress so_far = {sums + line * width, top + line, total + line};
                        see(&a, q + ((b * count + i) * heads + kv * group + g) * width, m, t, at, n, keys_across, values, scores,
                            typed, so_far);
                    }
            }
            for (int64_t g = 0; g < group; g++)
                for (int64_t i = begin; i < end; i++) {
                    const int64_t line = g * tall + i - begin, to = (b * count + i) * heads + kv * group + g;
                    for (int64_t j = 0; j < width; j++) y[to * width + j] = to_bf16(sums[line * width + j] / total[line]);
                    lse[to] = top[line] + logf(total[line]);
                }
        }
        release(true);
    }
    return true;
}

/* What a thread has for the backward: a block of keys, packed, and its gradients so far (width, step); products and gradients of a
   block of queries; queries that go through the keys together, turned, and their gradients so far. */
typedef struct {
    uint16_t *keys_across, *values_across, *keys_along;
    float *dk, *dv, *p, *dp;
    uint16_t *ds, *p_along, *ds_along, *q_turned, *dy_turned;
    float *dq, *along, *slopes;
} Desk;

static Desk desk_in(uint8_t *room, int64_t step, int64_t tall, int64_t width, int64_t *nbytes) {
    uint8_t *rest = room;
    Desk d;
    d.keys_across = cut_off(&rest, 2 * step * width), d.values_across = cut_off(&rest, 2 * step * width);
    d.keys_along = cut_off(&rest, 2 * step * width);
    d.dk = cut_off(&rest, 4 * step * width), d.dv = cut_off(&rest, 4 * step * width);
    d.p = cut_off(&rest, 4 * QUERIES * step), d.dp = cut_off(&rest, 4 * QUERIES * step);
    d.ds = cut_off(&rest, 2 * QUERIES * step), d.p_along = cut_off(&rest, 2 * QUERIES * step);
    d.ds_along = cut_off(&rest, 2 * QUERIES * step);
    d.q_turned = cut_off(&rest, 2 * tall * width), d.dy_turned = cut_off(&rest, 2 * tall * width);
    d.dq = cut_off(&rest, 4 * tall * width), d.along = cut_off(&rest, 4 * tall), d.slopes = cut_off(&rest, 4 * step);
    *nbytes = rest - room;
    return d;
}

/* The operands of a backward, and where dk and dv of a key head are summed up: (keys, ld) fp32. */
typedef struct {
    uint16_t *q;
    const uint16_t *k, *v, *dy, *y;
    const float *lse;
} Operands;
typedef struct {
    float *dk, *dv;
    int64_t ld;
} Sums;

/* Gradients of `m` queries, the first at `t` and at `line` of those on the desk, and of keys [at, at + n), which are on the desk.
   `from` is where the queries lie. */
static void meet(const Attention *a, const Operands *o, const Desk *d, int64_t from, int64_t m, int64_t t, int64_t line, int64_t at,
                 int64_t n) {
    const int64_t width = a->width, ld = a->heads * width, even = whole(m, 2);
    product(m, n, width, ld, n, n, false, o->q + from * width, d->keys_across, d->p, true);
    product(m, n, width, ld, n, n, false, o->dy + from * width, d->values_across, d->dp, true);
    for (int64_t i = 0; i < m; i++) {
        float *p = d->p + i * n, *dp = d->dp + i * n;
        uint16_t *ds = d->ds + i * n, *p_along = d->p_along + i / 2 * 2 * n + i % 2;
        const int64_t low = lesser(n, greater(0, first_key(a, t + i) - at)), high = greater(low, lesser(n, t + i + 1 - at));
        const float lse = o->lse[from + i * a->heads], along = d->along[line + i];
        to_scores(a, p, low, high, d->slopes);
        for (int64_t j = 0; j < low; j++) p[j] = dp[j] = 0;
        for (int64_t j = high; j < n; j++) p[j] = dp[j] = 0;
#pragma omp simd
        for (int64_t j = low; j < high; j++) {
            p[j] = exp_down(p[j] - lse);
            dp[j] = p[j] * (dp[j] - along) * a->scale;
        }
        if (a->cap > 0)
            for (int64_t j = low; j < high; j++) dp[j] *= d->slopes[j];
        for (int64_t j = 0; j < n; j++) ds[j] = to_bf16(dp[j]);
        for (int64_t j = 0; j < n; j++) p_along[2 * j] = to_bf16(p[j]);
    }
    if (even > m)
        for (int64_t j = 0; j < n; j++) d->p_along[m / 2 * 2 * n + 2 * j + 1] = 0;
    pack_along(d->ds, n, m, n, d->ds_along, even);
    product(m, width, n, n, width, width, true, d->ds, d->keys_along, d->dq + line * width, true);
    product(width, n, even, even, n, n, true, d->dy_turned + line * width, d->p_along, d->dv, true);
    product(width, n, even, even, n, n, true, d->q_turned + line * width, d->ds_along, d->dk, true);
}

/* Add sums (width, n) to rows (count, ld). */
static void add_turned(const float *sums, int64_t n, int64_t count, int64_t width, float *rows, int64_t ld) {
    union {
        uint32_t words[LINE * LINE];
        float values[LINE * LINE];
    } square __attribute__((aligned(64)));
    for (int64_t t = 0; t < count; t += LINE)
        for (int64_t j = 0; j < width; j += LINE) {
            transpose((const uint32_t *)sums + j * n + t, n, square.words, LINE);
            for (int64_t i = 0; i < lesser(LINE, count - t); i++)
                for (int64_t c = 0; c < LINE; c++) rows[(t + i) * ld + j + c] += square.values[i * LINE + c];
        }
}

/* The backward of queries [begin, end) of one head against the blocks of keys that are `member`'s of a team of so many. */
static void go_through_keys(const Attention *a, const Operands *o, const Desk *d, int64_t b, int64_t head, int64_t begin, int64_t end,
                            Sums into, int64_t member, int64_t team) {
    const int64_t width = a->width, step = key_block(a), keys = keys_of(a), kv = head / (a->heads / a->kv_heads);
    const int64_t kv_ld = a->kv_heads * width;
    memset(d->dq, 0, 4 * (end - begin) * width);
    for (int64_t i = begin; i < end; i += QUERIES) {
        const int64_t m = lesser(QUERIES, end - i), from = ((b * a->count + i) * a->heads + head) * width, even = whole(m, 2);
        turn(o->q + from, a->heads * width, m, width, d->q_turned + (i - begin) * width, even);
        turn(o->dy + from, a->heads * width, m, width, d->dy_turned + (i - begin) * width, even);
        for (int64_t r = 0; r < m; r++) {
            const uint16_t *dy = o->dy + from + r * a->heads * width, *y = o->y + from + r * a->heads * width;
            float along = 0;
#pragma omp simd reduction(+ : along)
            for (int64_t j = 0; j < width; j++) along += from_bf16(dy[j]) * from_bf16(y[j]);
            d->along[i - begin + r] = along;
        }
    }
    for (int64_t at = first_key(a, a->first + begin) / step * step; at < a->first + end; at += step) {
        if (at / step % team != member) continue;
        const int64_t here = lesser(step, keys - at), n = whole(here, LINE), from = ((b * keys + at) * a->kv_heads + kv) * width;
        pack_across(o->k + from, kv_ld, here, width, d->keys_across, n);
        pack_across(o->v + from, kv_ld, here, width, d->values_across, n);
        pack_along(o->k + from, kv_ld, here, width, d->keys_along, n);
        memset(d->dk, 0, 4 * n * width);
        memset(d->dv, 0, 4 * n * width);
        for (int64_t i = begin; i < end; i += QUERIES) {
            const int64_t m = lesser(QUERIES, end - i), t = a->first + i;
            if (at < t + m && at + here > first_key(a, t))
                meet(a, o, d, (b * a->count + i) * a->heads + head, m, t, i - begin, at, n);
        }
        add_turned(d->dk, n, here, width, into.dk + at * into.ld, into.ld);
        add_turned(d->dv, n, here, width, into.dv + at * into.ld, into.ld);
    }
}

/* dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dp p)) scale; dq = ds k, in the place of q; dk = ds^T q, where p = e^(score - lse) and
   sum(dp p) = sum(dy y). dk and dv are bf16, or, with `add`, fp32 sums that they are added to. A thread takes a key head at a time, or,
   where there are fewer, all threads share one: then each has blocks of keys of its own. As `attention`. */
bool attention_backward(uint16_t *q, const uint16_t *k, const uint16_t *v, const uint16_t *dy, const uint16_t *y, const float *lse,
                        void *dk, void *dv, bool add, int64_t batch, int64_t first, int64_t count, int64_t heads, int64_t kv_heads,
                        int64_t width, int64_t window, float scale, float cap, uint8_t *room, int64_t nbytes) {
    const Attention a = {batch, first, count, heads, kv_heads, width, window, scale, cap};
    const Operands o = {q, k, v, dy, y, lse};
    const int64_t group = heads / kv_heads, keys = keys_of(&a), step = key_block(&a), tall = tall_block(&a, 8 * width, 1);
    const int64_t items = batch * kv_heads, summed = add ? 0 : 2 * whole(4 * keys * width, 64);
    int64_t own;
    desk_in(room, step, tall, width, &own);
    bool alone = items >= omp_get_max_threads() && (own + summed) * omp_get_max_threads() <= nbytes;
    const int64_t threads = alone ? omp_get_max_threads() : threads_in(nbytes - summed, own, omp_get_max_threads());
    if (width % LINE || threads < 1) return false;
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), there = omp_get_num_threads(); /* fewer than asked for, perhaps */
        const int64_t team = alone ? 1 : there, member = alone ? 0 : thread;
        uint8_t *sums = room + (alone ? thread * (own + summed) : 0), *desks = sums + summed;
        int64_t unused;
        const Desk d = desk_in(desks + member * own, step, tall, width, &unused);
        for (int64_t item = alone ? thread : 0; item < items; item += alone ? there : 1) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, to = (b * keys * kv_heads + kv) * width;
            Sums into = {(float *)dk + to, (float *)dv + to, kv_heads * width};
            if (!add) {
                into = (Sums){(float *)sums, (float *)(sums + summed / 2), width};
                for (int64_t at = member * step; at < keys; at += team * step) {
                    memset(into.dk + at * width, 0, 4 * lesser(step, keys - at) * width);
                    memset(into.dv + at * width, 0, 4 * lesser(step, keys - at) * width);
                }
            }
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t begin = 0; begin < count; begin += tall) {
                    const int64_t end = lesser(count, begin + tall);
                    go_through_keys(&a, &o, &d, b, head, begin, end, into, member, team);
                    if (team > 1) {
#pragma omp barrier
                    }
                    for (int64_t i = begin + member; i < end; i += team)
                        for (int64_t j = 0; j < width; j++) {
                            float sum = 0;
                            for (int64_t other = 0; other < team; other++)
                                sum += ((const float *)((const uint8_t *)d.dq + (other - member) * own))[(i - begin) * width + j];
                            q[((b * count + i) * heads + head) * width + j] = to_bf16(sum);
                        }
                    if (team > 1) {
#pragma omp barrier
                    }
                }
            if (!add)
                for (int64_t at = member * step; at < keys; at += team * step)
                    for (int64_t t = at; t < lesser(keys, at + step); t++)
                        for (int64_t j = 0; j < width; j++) {
                            ((uint16_t *)dk)[to + t * kv_heads * width + j] = to_bf16(into.dk[t * width + j]);
                            ((uint16_t *)dv)[to + t * kv_heads * width + j] = to_bf16(into.dv[t * width + j]);
                        }
        }
        release(true);
    }
    return true;
}
