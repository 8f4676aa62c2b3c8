/* Activations times a weight: compressed and unpacked block by block where it is multiplied, or in bf16. */

/* Where a product's results go: (tokens, ld), bf16 or fp32, set or added to, with a bias (bf16) or none. */
typedef struct {
    void *values;
    int64_t ld;
    bool fp32, add;
    const uint16_t *bias;
} Result;

/* Columns [column, column + n) of tokens [token, token + m) from sums c. */
static void put(const Result *r, int64_t token, int64_t column, const float *c, int64_t ldc, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++) {
        const float *restrict sums = c + i * ldc;
        const uint16_t *bias = r->bias ? r->bias + column : 0;
        const int64_t at = (token + i) * r->ld + column;
        if (r->fp32) {
            float *restrict out = (float *)r->values + at;
            for (int64_t j = 0; j < n; j++) out[j] = (r->add ? out[j] : 0) + sums[j] + (bias ? from_bf16(bias[j]) : 0);
        } else {
            uint16_t *restrict out = (uint16_t *)r->values + at;
            if (bias)
                for (int64_t j = 0; j < n; j++) out[j] = to_bf16(sums[j] + from_bf16(bias[j]) + (r->add ? from_bf16(out[j]) : 0));
            else if (r->add)
                for (int64_t j = 0; j < n; j++) out[j] = to_bf16(sums[j] + from_bf16(out[j]));
            else
                for (int64_t j = 0; j < n; j++) out[j] = to_bf16(sums[j]);
        }
    }
}

/* How a product is cut: tokens of a pass, the inner dimension of a call, and blocks: `full` of `columns` columns (of each slot),
   then the rest in blocks of `last`. */
typedef struct {
    int64_t tokens, deep, columns, full, last, blocks;
} Cut;

/* The largest cut whose sums and block of weights fit a thread's room, of `most` columns at most and in multiples of `grain` where
   there are many; blocks == 0 where none fits. */
static Cut cut_for(int64_t tokens, int64_t columns, int64_t depth, int64_t slots, int64_t most, int64_t grain, int64_t room,
                   int64_t threads) {
    Cut cut = {.tokens = lesser(tokens, MOST_TOKENS), .deep = whole(lesser(depth, DEEP), 2)};
    for (;;) {
        const int64_t fitting = room / (4 * slots * cut.tokens + 2 * cut.deep) / LINE * LINE;
        cut.columns = lesser(lesser(fitting, most), whole(columns, LINE));
        if (cut.columns * slots >= LEAST_COLUMNS || cut.columns >= columns || cut.tokens <= LEAST_TOKENS) break;
        cut.tokens = whole(cut.tokens / 2, LINE);
    }
    if (cut.columns > grain) cut.columns = cut.columns / grain * grain;
    if (cut.columns < LINE) return cut;
    const int64_t unit = cut.columns >= grain ? grain : LINE, round = cut.columns * threads;
    cut.full = columns / round * threads; /* as many full blocks for every thread; what is left is divided evenly among them */
    const int64_t left = columns - cut.full * cut.columns;
    cut.last = whole(pieces(left, threads), unit);
    cut.blocks = cut.full + (left ? pieces(left, cut.last) : 0);
    return cut;
}

/* The first column of a block. */
static int64_t first_of(const Cut *cut, int64_t block) {
    return block < cut->full ? block * cut->columns : cut->full * cut->columns + (block - cut->full) * cut->last;
}

/* result (tokens, rows) = x (tokens, cols) W^T, where `transposed`, or (tokens, cols) = x (tokens, rows) W; in addition left (tokens,
   rank) times right^T, right (rows, rank), or times right (rank, cols), where rank is not 0.

   One parallel region: a thread unpacks a block of the weight to its part of `room` and multiplies it there. False where the room
   is too small or the shape is odd: nothing is computed then. */
bool multiply(const Weight *w, bool transposed, const uint16_t *x, int64_t ldx, int64_t tokens, void *values, int64_t ld, bool fp32,
              bool add, const uint16_t *bias, const uint16_t *left, const uint16_t *right, int64_t rank, uint8_t *room, int64_t nbytes) {
    const int64_t rows = w->rows, cols = w->cols;
    const Result result = {values, ld, fp32, add, bias};
    const int64_t slots = slots_of(w), width = width_of(w), threads = omp_get_max_threads(), own = nbytes / threads / 64 * 64;
    const Cut cut = transposed ? cut_for(tokens, rows, width, 1, ROW_COLUMNS, LINE, own, threads)
                               : cut_for(tokens, width, rows, slots, MOST_COLUMNS / slots, GRAIN, own, threads);
    if (rank % 2 || rank > cut.deep) return false;
    if (!cut.blocks || width % 2 || cols % slots || (!transposed && (width % LINE || rows % 2))) return false;
#pragma omp parallel
    {
        float *sums = (float *)(room + own * omp_get_thread_num());
        uint16_t *block = (uint16_t *)(sums + cut.tokens * cut.columns * (transposed ? 1 : slots));
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < cut.blocks; b++) {
            const int64_t first = first_of(&cut, b), count = lesser(first_of(&cut, b + 1), transposed ? rows : width) - first;
            const int64_t n = whole(count, LINE);
            for (int64_t token = 0; token < tokens; token += cut.tokens) {
                const int64_t m = lesser(cut.tokens, tokens - token);
                const uint16_t *from = x + token * ldx;
                if (transposed) {
                    for (int64_t k = 0; k < width; k += cut.deep)
                        for (int64_t slot = 0; slot < slots; slot++) {
                            const int64_t end = lesser(width, k + cut.deep);
                            block_of_rows(w, slot, first, n, k, end, block);
                            product(m, n, end - k, ldx, n, n, k + slot > 0, from + slot * width + k, block, sums, true);
                        }
                    if (rank) {
                        pack_across(right + first * rank, rank, count, rank, block, n);
                        product(m, n, rank, rank, n, n, true, left + token * rank, block, sums, true);
                    }
                    put(&result, token, first, sums, n, m, count);
                } else {
                    for (int64_t k = 0; k < rows; k += cut.deep)
                        for (int64_t slot = 0; slot < slots; slot++) {
                            const int64_t end = lesser(rows, k + cut.deep);
                            block_of_columns(w, slot, k, end, first, count, block);
                            product(m, count, end - k, ldx, count, count * slots, k > 0, from + k, block, sums + slot * count, true);
                        }
                    for (int64_t slot = 0; rank && slot < slots; slot++) {
                        pack_along(right + slot * width + first, cols, rank, count, block, rank);
                        product(m, count, rank, rank, count, count * slots, true, left + token * rank, block, sums + slot * count, true);
                    }
                    for (int64_t slot = 0; slot < slots; slot++)
                        put(&result, token, slot * width + first, sums + slot * count, count * slots, m, count);
                }
            }
        }
        release(true);
    }
    return true;
}

/* result (tokens, n) = x (tokens, k) times b (k, n), or times b^T, b (n, k), where `transposed`: for processors whose libraries crawl
   on bf16. A thread takes some columns at a time, packed on its stack. */
void multiply_dense(const uint16_t *x, int64_t ldx, const uint16_t *b, int64_t ldb, int64_t tokens, int64_t n, int64_t k,
                    bool transposed, uint16_t *values, int64_t ld, bool add) {
    enum { STRIP = 64, ROWS = 256 };
    const Result result = {values, ld, false, add, 0};
#pragma omp parallel
    {
        uint16_t block[DEEP * STRIP];
        float sums[ROWS * STRIP];
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (int64_t first = 0; first < n; first += STRIP)
            for (int64_t token = 0; token < tokens; token += ROWS) {
                const int64_t count = lesser(STRIP, n - first), wide = whole(count, LINE), m = lesser(ROWS, tokens - token);
                for (int64_t from = 0; from < k; from += DEEP) {
                    const int64_t deep = lesser(DEEP, k - from), even = whole(deep, 2);
                    for (int64_t i = 0; i < even; i++)
                        for (int64_t j = 0; j < wide; j++)
                            block[(i / 2 * wide + j) * 2 + i % 2] =
                                i >= deep || j >= count ? 0
                                : transposed            ? b[(first + j) * ldb + from + i]
                                                        : b[(from + i) * ldb + first + j];
                    product(m, wide, even, ldx, wide, wide, from > 0, x + token * ldx + from, block, sums, true);
                }
                put(&result, token, first, sums, wide, m, count);
            }
        release(true);
    }
}
