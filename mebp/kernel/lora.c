/* What an adapter adds to a product, and its gradients. */

enum { TOKENS = 64, MOST_RANK = 256, LORA_COLUMNS = 256, LEAST_LORA_COLUMNS = 32 };

/* Columns of pairs of A^T or B, (inner / 2, wide, 2), zeros from `rank` to `wide`: from w (rank, inner), or (inner, rank) where
   `along`. Called by all threads of a region. */
static void pack_narrow(const uint16_t *w, int64_t inner, int64_t rank, int64_t wide, bool along, uint16_t *out) {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < inner / 2; p++)
        for (int64_t r = 0; r < wide; r++)
            for (int64_t i = 0; i < 2; i++) {
                const int64_t at = along ? (2 * p + i) * rank + r : r * inner + 2 * p + i;
                out[(p * wide + r) * 2 + i] = r < rank ? w[at] : 0;
            }
}

/* h (tokens, rank) = x (tokens, inner) packed; and, where `turned` is not null, the same as (wide, even) rows. Called by all threads
   of a region. */
static void narrow(const uint16_t *x, int64_t tokens, int64_t inner, const uint16_t *packed, int64_t rank, int64_t wide, uint16_t *h,
                   uint16_t *turned, int64_t even) {
    float sums[TOKENS * MOST_RANK];
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t += TOKENS) {
        const int64_t m = lesser(TOKENS, tokens - t);
        product(m, wide, inner, inner, wide, wide, false, x + t * inner, packed, sums, true);
        for (int64_t i = 0; i < m; i++)
            for (int64_t r = 0; r < rank; r++) h[(t + i) * rank + r] = to_bf16(sums[i * wide + r]);
        if (turned)
            for (int64_t r = 0; r < wide; r++) {
                for (int64_t i = 0; i < m; i++) turned[r * even + t + i] = to_bf16(sums[i * wide + r]);
                if (t + m == tokens && even > tokens) turned[r * even + tokens] = 0;
            }
    }
}

/* h (tokens, rank) = x (tokens, cols) A^T, A (rank, cols). False where the room is too small: nothing is computed then. */
bool lora_down(const uint16_t *x, const uint16_t *A, uint16_t *h, int64_t tokens, int64_t cols, int64_t rank, uint8_t *room,
               int64_t nbytes) {
    const int64_t wide = whole(rank, LINE);
    if (cols % 2 || wide > MOST_RANK || nbytes < 2 * cols * wide) return false;
#pragma omp parallel
    {
        pack_narrow(A, cols, rank, wide, false, (uint16_t *)room);
        narrow(x, tokens, cols, (uint16_t *)room, rank, wide, h, 0, 0);
        release(true);
    }
    return true;
}

/* sums (wide, n) = left (wide, even) times columns of x (tokens, ld), a part of the tokens at a time. */
static void gather_tokens(const uint16_t *left, const uint16_t *x, int64_t ld, int64_t tokens, int64_t even, int64_t wide, int64_t n,
                          uint16_t *block, float *sums) {
    for (int64_t t = 0; t < even; t += DEEP) {
        const int64_t deep = lesser(DEEP, even - t);
        pack_along(x + t * ld, ld, tokens - t, n, block, deep);
        product(wide, n, deep, even, n, n, t > 0, left + t, block, sums, true);
    }
}

/* With x (tokens, cols), dy (tokens, outs), A (rank, cols) and B (outs, rank), which has the scale in it: h = x A^T, dh = dy B,
   dA (rank, cols) = dh^T x, dB (outs, rank) = scale dy^T h, both fp32, or added to with `add`. As lora_down. */
bool lora_gradients(const uint16_t *x, const uint16_t *dy, const uint16_t *A, const uint16_t *B, uint16_t *h, uint16_t *dh, float *dA,
                    float *dB, float scale, bool add, int64_t tokens, int64_t cols, int64_t outs, int64_t rank, uint8_t *room, int64_t nbytes) {
    const int64_t wide = whole(rank, LINE), even = whole(tokens, 2), threads = omp_get_max_threads();
    const int64_t shared = whole(2 * cols * wide, 64) + whole(2 * outs * wide, 64) + 2 * whole(2 * even * wide, 64);
    const int64_t own = (nbytes - shared) / threads / 64 * 64 - 128, deep = lesser(DEEP, even);
    int64_t columns = LORA_COLUMNS;
    while (columns >= LEAST_LORA_COLUMNS && columns * (2 * deep + 4 * wide) > own) columns /= 2;
    if (cols % LINE || outs % LINE || wide > MOST_RANK || columns < LEAST_LORA_COLUMNS) return false;
    uint8_t *rest = room;
    uint16_t *packed_A = cut_off(&rest, 2 * cols * wide), *packed_B = cut_off(&rest, 2 * outs * wide);
    uint16_t *h_rows = cut_off(&rest, 2 * even * wide), *dh_rows = cut_off(&rest, 2 * even * wide);
#pragma omp parallel
    {
        uint8_t *mine = rest + (own + 128) * omp_get_thread_num();
        uint16_t *block = cut_off(&mine, 2 * columns * deep);
        float *sums = cut_off(&mine, 4 * columns * wide);
        pack_narrow(A, cols, rank, wide, false, packed_A);
        pack_narrow(B, outs, rank, wide, true, packed_B);
        narrow(x, tokens, cols, packed_A, rank, wide, h, h_rows, even);
        narrow(dy, tokens, outs, packed_B, rank, wide, dh, dh_rows, even);
        const int64_t of_A = pieces(cols, columns);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < of_A + pieces(outs, columns); b++) {
            const bool is_A = b < of_A;
            const int64_t width = is_A ? cols : outs, first = (is_A ? b : b - of_A) * columns, n = lesser(columns, width - first);
            gather_tokens(is_A ? dh_rows : h_rows, (is_A ? x : dy) + first, width, tokens, even, wide, n, block, sums);
            if (is_A)
                for (int64_t r = 0; r < rank; r++)
                    for (int64_t j = 0; j < n; j++) {
                        float *to = dA + r * cols + first + j;
                        *to = (add ? *to : 0) + sums[r * n + j];
                    }
            else
                for (int64_t j = 0; j < n; j++)
                    for (int64_t r = 0; r < rank; r++) {
                        float *to = dB + (first + j) * rank + r;
                        *to = (add ? *to : 0) + scale * sums[r * n + j];
                    }
        }
        release(true);
    }
    return true;
}
