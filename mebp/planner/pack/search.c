/* Addresses for buffers within a capacity: one restart of the search that search.py describes. */

#include <stdint.h>
#include <stdlib.h>

enum { NONE = 0, FOUND = 1, CUT = -1, NO_MEMORY = -2 };
enum { TABLE = 1 << 16 };

typedef struct { /* these parts, as low as they were, could not be placed from (last, rank) on */
    uint64_t key;
    int64_t last;
    int32_t rank;
} Failure;

typedef struct {
    int32_t count, moments;
    const int32_t *start, *end, *rank;
    const int64_t *size;
    int64_t capacity, nodes, most_nodes;
    const volatile int32_t *stop;
    int64_t *offset, *blame;
    int64_t *low;                 /* top of what is placed below: where a buffer that is not placed would lie */
    int64_t *ready;               /* no less: where it may still lie */
    int64_t *at, *above;          /* of the buffers at one moment */
    char *placed;
    int32_t *meets, *meets_from;  /* buffers that live together with each */
    int32_t *live, *live_from;    /* buffers at each moment that counts */
    int32_t *first, *after;       /* such moments of each buffer */
    int32_t *changed;             /* moments to look at: +1 where a stretch of them begins, -1 where it ends */
    Failure *failures;
} Search;

static uint64_t mixed(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

/* Whether the turn of b at its lowest address is over: placements go upwards, and by rank where they are level. */
static int passed(const Search *s, int32_t b, int64_t last, int32_t rank) {
    return s->low[b] < last || (s->low[b] == last && s->rank[b] < rank);
}

/* Where b may still lie; -1 where it must have been placed before: the hole that it left must be filled, and b be lifted. */
static int64_t ready_of(const Search *s, int32_t b, int64_t last, int32_t rank) {
    if (!passed(s, b, last, rank)) return s->low[b];
    int64_t filled_from = INT64_MAX, lifted_to = INT64_MAX;
    for (int32_t j = s->meets_from[b]; j < s->meets_from[b + 1]; j++) {
        const int32_t other = s->meets[j];
        if (s->placed[other]) continue;
        const int64_t bottom = s->low[other] > last ? s->low[other] : last;
        if (bottom < filled_from) filled_from = bottom;
        if (bottom + s->size[other] < lifted_to) lifted_to = bottom + s->size[other];
    }
    return filled_from < s->low[b] + s->size[b] ? lifted_to : -1;
}

/* Whether what is not placed fits at a moment, one above the other and none below where it may lie. */
static int moment_fits(Search *s, int32_t moment) {
    int32_t count = 0;
    int64_t top = 0;
    for (int32_t j = s->live_from[moment]; j < s->live_from[moment + 1]; j++) {
        const int32_t b = s->live[j];
        if (s->placed[b]) continue;
        int32_t i = count++;
        for (; i > 0 && s->at[i - 1] > s->ready[b]; i--) {
            s->at[i] = s->at[i - 1];
            s->above[i] = s->above[i - 1];
        }
        s->at[i] = s->ready[b];
        s->above[i] = s->size[b];
    }
    for (int32_t i = 0; i < count; i++) top = (top > s->at[i] ? top : s->at[i]) + s->above[i];
    if (top <= s->capacity) return 1;
    for (int32_t j = s->live_from[moment]; j < s->live_from[moment + 1]; j++)
        if (!s->placed[s->live[j]]) s->blame[s->live[j]]++;
    return 0;
}

/* Work out where all may still lie, and look at every moment where that has changed. */
static int fits(Search *s, const int32_t *open, int32_t count, int64_t last, int32_t rank) {
    int32_t begin = s->moments, end = 0, depth = 0;
    int ok = 1;
    for (int32_t i = 0; i < count && ok; i++) {
        const int32_t b = open[i];
        const int64_t at = ready_of(s, b, last, rank);
        ok = at >= 0 && at + s->size[b] <= s->capacity;
        if (!ok) s->blame[b]++;
        if (at == s->ready[b]) continue;
        s->ready[b] = at;
        s->changed[s->first[b]]++;
        s->changed[s->after[b]]--;
        if (s->first[b] < begin) begin = s->first[b];
        if (s->after[b] > end) end = s->after[b];
    }
    for (int32_t moment = begin; moment <= end && begin < s->moments; moment++) {
        depth += s->changed[moment];
        s->changed[moment] = 0;
        if (ok && depth > 0) ok = moment_fits(s, moment);
    }
    return ok;
}

static Failure *failure_of(const Search *s, const int32_t *open, int32_t count, uint64_t *key) {
    *key = 1;
    for (int32_t i = 0; i < count; i++) *key ^= mixed(mixed((uint64_t)open[i] + 1) ^ (uint64_t)s->low[open[i]]);
    return &s->failures[*key % TABLE];
}

static int place(Search *s, const int32_t *open, int32_t count, int64_t last, int32_t rank);

/* Place groups that share no moment independently; `open` is sorted by start. */
static int place_parts(Search *s, const int32_t *open, int32_t count, int64_t last, int32_t rank) {
    int32_t begin = 0, end = 0;
    for (int32_t i = 0; i < count; i++) {
        if (i > begin && s->start[open[i]] >= end) {
            const int result = place(s, open + begin, i - begin, last, rank);
            if (result != FOUND) return result;
            begin = i;
        }
        if (s->end[open[i]] > end) end = s->end[open[i]];
    }
    return count ? place(s, open + begin, count - begin, last, rank) : FOUND;
}

static int alike(const Search *s, int32_t a, int32_t b) {
    return s->start[a] == s->start[b] && s->end[a] == s->end[b] && s->size[a] == s->size[b];
}

/* What may be placed next, lowest first; of buffers that are alike one; none that would leave room for another below it. */
static int32_t choices_of(const Search *s, const int32_t *open, int32_t count, int64_t last, int32_t rank, int32_t *choice) {
    int64_t lowest_top = INT64_MAX;
    int32_t found = 0;
    for (int32_t i = 0; i < count; i++) {
        const int64_t top = s->low[open[i]] + s->size[open[i]];
        if (top < lowest_top) lowest_top = top;
    }
    for (int32_t i = 0; i < count; i++) {
        const int32_t b = open[i];
        int twin = 0;
        if (passed(s, b, last, rank) || s->low[b] >= lowest_top) continue;
        for (int32_t c = 0; c < found && !twin; c++) twin = alike(s, choice[c], b);
        if (twin) continue;
        int32_t c = found++;
        for (; c > 0; c--) {
            const int32_t other = choice[c - 1];
            if (s->low[other] < s->low[b] || (s->low[other] == s->low[b] && s->rank[other] < s->rank[b])) break;
            choice[c] = other;
        }
        choice[c] = b;
    }
    return found;
}

/* Place b and then all others of `open`; where that fails, all is as it was. `alone` where nothing will lie above b. */
static int place_one(Search *s, int32_t b, const int32_t *open, int32_t count, int32_t *rest, int64_t *lows, int *alone) {
    const int64_t at = s->low[b], top = at + s->size[b];
    int32_t left = 0, lifted = 0;
    for (int32_t i = 0; i < count; i++)
        if (open[i] != b) rest[left++] = open[i];
    s->placed[b] = 1;
    s->offset[b] = at;
    for (int32_t j = s->meets_from[b]; j < s->meets_from[b + 1]; j++) {
        const int32_t other = s->meets[j];
        if (s->placed[other]) continue;
        lows[lifted++] = s->low[other];
        if (s->low[other] < top) s->low[other] = top;
    }
    *alone = !lifted;
    const int result = place_parts(s, rest, left, at, s->rank[b]);
    if (result == FOUND) return FOUND;
    for (int32_t i = 0; i < left; i++) s->placed[rest[i]] = 0; /* parts that were placed before another failed */
    lifted = 0;
    for (int32_t j = s->meets_from[b]; j < s->meets_from[b + 1]; j++)
        if (!s->placed[s->meets[j]]) s->low[s->meets[j]] = lows[lifted++];
    s->placed[b] = 0;
    return result;
}

/* Place all of `open`, which live in one stretch of time, from (last, rank) upwards. */
static int place(Search *s, const int32_t *open, int32_t count, int64_t last, int32_t rank) {
    uint64_t key;
    if (++s->nodes > s->most_nodes || *s->stop) return CUT;
    Failure *failure = failure_of(s, open, count, &key);
    if (failure->key == key && (failure->last < last || (failure->last == last && failure->rank <= rank))) return NONE;
    int64_t *lows = malloc(sizeof(int64_t) * 3 * (size_t)count);
    if (!lows) return NO_MEMORY;
    int64_t *ready = lows + count;
    int32_t *choice = (int32_t *)(ready + count), *rest = choice + count;
    int result = NONE, alone = 0;
    for (int32_t i = 0; i < count; i++) ready[i] = s->ready[open[i]];
    if (fits(s, open, count, last, rank)) {
        const int32_t choices = choices_of(s, open, count, last, rank, choice);
        for (int32_t c = 0; c < choices && result == NONE && !alone; c++)
            result = place_one(s, choice[c], open, count, rest, lows, &alone);
    }
    if (result == NONE) *failure = (Failure){key, last, rank};
    if (result != FOUND)
        for (int32_t i = 0; i < count; i++) s->ready[open[i]] = ready[i];
    free(lows);
    return result;
}

/* Which buffers meet, and who is live at each moment that counts: one at which a buffer was born since the last death. */
static int prepare(Search *s, int32_t horizon) {
    const int32_t n = s->count;
    int64_t met = 0, lived = 0;
    int32_t *which = malloc(sizeof(int32_t) * ((size_t)horizon + 1)), born = 0;
    char *births = calloc((size_t)horizon + 1, 1), *deaths = calloc((size_t)horizon + 1, 1);
    if (!which || !births || !deaths) {
        free(which), free(births), free(deaths);
        return 0;
    }
    for (int32_t a = 0; a < n; a++) births[s->start[a]] = deaths[s->end[a]] = 1;
    for (int32_t moment = 0; moment < horizon; moment++) {
        born |= births[moment];
        if (born && deaths[moment + 1]) which[s->moments++] = moment, born = 0;
    }
    for (int32_t a = 0; a < n; a++) {
        for (s->first[a] = 0; which[s->first[a]] < s->start[a]; s->first[a]++);
        for (s->after[a] = s->first[a]; s->after[a] < s->moments && which[s->after[a]] < s->end[a]; s->after[a]++);
        lived += s->after[a] - s->first[a];
        for (int32_t b = 0; b < n; b++) met += s->start[a] < s->end[b] && s->start[b] < s->end[a];
    }
    s->meets = malloc(sizeof(int32_t) * (size_t)met);
    s->live = malloc(sizeof(int32_t) * (size_t)lived);
    s->live_from = malloc(sizeof(int32_t) * ((size_t)s->moments + 1));
    s->changed = calloc((size_t)s->moments + 1, sizeof(int32_t));
    free(which), free(births), free(deaths);
    if (!s->meets || !s->live || !s->live_from || !s->changed) return 0;
    int32_t at = 0;
    for (int32_t a = 0; a < n; a++) {
        s->meets_from[a] = at;
        for (int32_t b = 0; b < n; b++)
            if (a != b && s->start[a] < s->end[b] && s->start[b] < s->end[a]) s->meets[at++] = b;
    }
    s->meets_from[n] = at;
    at = 0;
    for (int32_t moment = 0; moment < s->moments; moment++) {
        s->live_from[moment] = at;
        for (int32_t a = 0; a < n; a++)
            if (s->first[a] <= moment && moment < s->after[a]) s->live[at++] = a;
    }
    s->live_from[s->moments] = at;
    return 1;
}

/* One restart. Buffers are sorted by start; `rank` is the order in which those that are level are tried; `blame` counts how often
   each was in the way. Returns FOUND with `offset`, NONE where no packing exists, CUT after `most_nodes` or a stop. */
int pack_search(int32_t count, int32_t horizon, const int32_t *start, const int32_t *end, const int64_t *size,
                const int32_t *rank, int64_t capacity, int64_t most_nodes, const volatile int32_t *stop, int64_t *offset,
                int64_t *blame) {
    const size_t n = (size_t)count;
    Search s = {.count = count, .start = start, .end = end, .rank = rank, .size = size, .capacity = capacity,
                .most_nodes = most_nodes, .stop = stop, .offset = offset, .blame = blame};
    int64_t *wide = calloc(4 * n, sizeof(int64_t));
    int32_t *narrow = calloc(4 * n + 1, sizeof(int32_t));
    s.placed = calloc(n, 1);
    s.failures = calloc(TABLE, sizeof(Failure));
    int result = NO_MEMORY;
    if (wide && narrow && s.placed && s.failures) {
        s.low = wide, s.ready = wide + n, s.at = wide + 2 * n, s.above = wide + 3 * n;
        s.first = narrow, s.after = narrow + n, s.meets_from = narrow + 2 * n;
        int32_t *open = narrow + 3 * n + 1;
        for (int32_t i = 0; i < count; i++) open[i] = i, s.ready[i] = -1;
        if (prepare(&s, horizon)) result = place_parts(&s, open, count, 0, -1);
    }
    free(s.meets), free(s.live), free(s.live_from), free(s.changed);
    free(wide), free(narrow), free(s.placed), free(s.failures);
    return result;
}
