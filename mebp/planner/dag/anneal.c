/* Simulated annealing over orders with recomputation: see anneal.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NEVER (INT64_C(1) << 61) /* a transfer that costs this is not made */

typedef struct {
    int32_t nodes, slots;           /* slots: runs of a node in addition to its first */
    int32_t free_order;
    const int32_t *reads_from, *reads, *readers_from, *readers;
    const int64_t *size, *cost, *moving; /* moving: cost of one transfer of a result, or null */
    int64_t budget;
} Dag;

typedef struct {
    int32_t *order, *position;
    int32_t *before;                /* nodes x slots: the node whose first run an extra run precedes, or -1 */
    uint8_t *loaded;                /* nodes x slots */
} State;

typedef struct {
    int32_t count, peak_at;
    int32_t *node, *last;           /* of each run: its node, its last reader */
    int64_t cost;
    double excess;                  /* bytes above the budget, summed over runs */
} Played;

typedef struct {
    int32_t *newest, *head, *next;  /* room for play(): newest run of a node; extra runs by the node that they precede */
    int64_t *change;
    uint8_t *stored;
    uint64_t random;
} Room;

static uint64_t draw(Room *r) { /* xorshift64* (Vigna, 2016) */
    r->random ^= r->random >> 12;
    r->random ^= r->random << 25;
    r->random ^= r->random >> 27;
    return r->random * 0x2545f4914f6cdd1dULL;
}

static int32_t below(Room *r, int32_t limit) { return (int32_t)((draw(r) >> 33) % (uint64_t)limit); }

static double unit(Room *r) { return (double)(draw(r) >> 11) / 9007199254740992.0; }

static void run(const Dag *d, Played *p, Room *r, int32_t v, int loaded) {
    const int32_t at = p->count++;
    if (loaded) {
        p->cost += d->moving[v] * (r->stored[v] ? 1 : 2);
        r->stored[v] = 1;
    } else {
        p->cost += d->cost[v];
        for (int32_t j = d->reads_from[v]; j < d->reads_from[v + 1]; j++) p->last[r->newest[d->reads[j]]] = at;
    }
    p->node[at] = v;
    p->last[at] = at;
    r->newest[v] = at;
}

/* Run all nodes in order, each behind the extra runs that precede it (in order too), and add up. */
static void play(const Dag *d, const State *s, Played *p, Room *r) {
    memset(r->head, 0xff, sizeof(int32_t) * (size_t)d->nodes);
    memset(r->stored, 0, (size_t)d->nodes);
    for (int32_t i = d->nodes; i-- > 0;) {
        const int32_t v = s->order[i];
        for (int32_t k = v * d->slots; k < (v + 1) * d->slots; k++) {
            const int32_t w = s->before[k];
            if (w < 0 || s->position[w] <= i) continue;
            r->next[k] = r->head[w];
            r->head[w] = k;
        }
    }
    p->count = 0;
    p->cost = 0;
    for (int32_t i = 0; i < d->nodes; i++) {
        const int32_t w = s->order[i];
        for (int32_t k = r->head[w]; k >= 0; k = r->next[k]) run(d, p, r, k / d->slots, s->loaded[k]);
        run(d, p, r, w, 0);
    }
    memset(r->change, 0, sizeof(int64_t) * ((size_t)p->count + 1));
    for (int32_t at = 0; at < p->count; at++) {
        r->change[at] += d->size[p->node[at]];
        r->change[p->last[at] + 1] -= d->size[p->node[at]];
    }
    int64_t live = 0, peak = -1;
    p->excess = 0;
    for (int32_t at = 0; at < p->count; at++) {
        live += r->change[at];
        if (live > d->budget) p->excess += (double)(live - d->budget);
        if (live > peak) peak = live, p->peak_at = at;
    }
}

/* A node to bring back: of those that live through the fullest run, or any. */
static int32_t pick(const Dag *d, const Played *p, Room *r) {
    if (draw(r) >> 63) return below(r, d->nodes);
    const int32_t begin = below(r, p->peak_at + 1);
    for (int32_t i = 0; i <= p->peak_at; i++) {
        const int32_t at = (begin + i) % (p->peak_at + 1);
        if (p->last[at] > p->peak_at) return p->node[at];
    }
    return below(r, d->nodes);
}

/* Where a result is read: at a reader's first run, or at one of its extra runs; -1 where it has none. */
static int32_t stage_of(const Dag *d, const State *s, Room *r, int32_t v) {
    const int32_t count = d->readers_from[v + 1] - d->readers_from[v];
    if (!count) return -1;
    const int32_t w = d->readers[d->readers_from[v] + below(r, count)];
    const int32_t extra = s->before[w * d->slots + below(r, d->slots)];
    return extra >= 0 && draw(r) >> 63 ? extra : w;
}

typedef struct { int32_t extra, before, from, to; uint8_t loaded; } Change; /* extra or from: -1 where that was not changed */

static Change set_extra(const Dag *d, State *s, Room *r, int32_t v, int32_t stage) {
    const int32_t k = v * d->slots + below(r, d->slots);
    const Change old = {k, s->before[k], -1, -1, s->loaded[k]};
    s->before[k] = stage;
    s->loaded[k] = d->moving != NULL && d->moving[v] < NEVER && draw(r) >> 63;
    return old;
}

static void shift(State *s, int32_t from, int32_t to) {
    const int32_t v = s->order[from], step = from < to ? 1 : -1;
    for (int32_t i = from; i != to; i += step) s->order[i] = s->order[i + step], s->position[s->order[i]] = i;
    s->order[to] = v;
    s->position[v] = to;
}

/* Move a node within the order, between what it reads and what reads it. */
static Change move_node(const Dag *d, State *s, Room *r) {
    const int32_t v = below(r, d->nodes);
    int32_t low = 0, high = d->nodes - 1;
    for (int32_t j = d->reads_from[v]; j < d->reads_from[v + 1]; j++)
        if (s->position[d->reads[j]] + 1 > low) low = s->position[d->reads[j]] + 1;
    for (int32_t j = d->readers_from[v]; j < d->readers_from[v + 1]; j++)
        if (s->position[d->readers[j]] - 1 < high) high = s->position[d->readers[j]] - 1;
    const Change old = {-1, -1, s->position[v], low + below(r, high - low + 1), 0};
    shift(s, old.from, old.to);
    return old;
}

static Change change(const Dag *d, State *s, const Played *p, Room *r) {
    const Change nothing = {-1, -1, -1, -1, 0};
    const int32_t kind = below(r, 100);
    if (d->free_order && kind < 30) return move_node(d, s, r);
    if (!d->slots) return nothing;
    if (kind < 55) { /* take an extra run out */
        const int32_t count = d->nodes * d->slots, begin = below(r, count);
        for (int32_t i = 0; i < count; i++) {
            const int32_t k = (begin + i) % count;
            if (s->before[k] < 0) continue;
            const Change old = {k, s->before[k], -1, -1, s->loaded[k]};
            s->before[k] = -1;
            return old;
        }
        return nothing;
    }
    if (kind < 70) { /* bring back what an extra run reads, too */
        const int32_t k = below(r, d->nodes * d->slots), v = k / d->slots;
        const int32_t count = d->reads_from[v + 1] - d->reads_from[v];
        if (s->before[k] < 0 || !count) return nothing;
        return set_extra(d, s, r, d->reads[d->reads_from[v] + below(r, count)], s->before[k]);
    }
    const int32_t v = pick(d, p, r), stage = stage_of(d, s, r, v);
    return stage < 0 ? nothing : set_extra(d, s, r, v, stage);
}

static void undo(State *s, Change old) {
    if (old.extra >= 0) s->before[old.extra] = old.before, s->loaded[old.extra] = old.loaded;
    if (old.from >= 0) shift(s, old.to, old.from);
}

static void copy(const Dag *d, State *to, const State *from) {
    const size_t extras = (size_t)d->nodes * (size_t)d->slots;
    memcpy(to->order, from->order, sizeof(int32_t) * (size_t)d->nodes);
    memcpy(to->before, from->before, sizeof(int32_t) * extras);
    memcpy(to->loaded, from->loaded, extras);
}

/* Improve the order and extra runs given; they become the best that fit, whose cost is returned, or are left where none did (-1).
   `excess_cost` is what a byte above the budget costs at each run; temperatures are costs. -2: no memory. */
int64_t dag_anneal(int32_t nodes, int32_t slots, int32_t free_order, const int32_t *reads_from, const int32_t *reads,
                   const int32_t *readers_from, const int32_t *readers, const int64_t *size, const int64_t *cost,
                   const int64_t *moving, int64_t budget, int64_t rounds, double hot, double cold, double excess_cost,
                   uint64_t seed, const volatile int32_t *stop, int32_t *order, int32_t *before, uint8_t *loaded) {
    const Dag d = {nodes, slots, free_order, reads_from, reads, readers_from, readers, size, cost, moving, budget};
    const size_t n = (size_t)nodes, extras = n * (size_t)slots, runs = n + extras;
    int32_t *narrow = calloc(4 * n + 2 * extras + 4 * runs, sizeof(int32_t));
    int64_t *change_room = calloc(runs + 1, sizeof(int64_t));
    uint8_t *bytes = calloc(n + extras, 1);
    int64_t best_cost = -2;
    if (narrow && change_room && bytes) {
        int32_t *at = narrow;
        State s = {.order = at, .position = at + n, .before = before, .loaded = loaded}, best = {.order = order, .before = before, .loaded = loaded};
        at += 2 * n;
        Room r = {.newest = at, .head = at + n, .change = change_room, .stored = bytes, .random = seed * 2 + 1};
        at += 2 * n;
        r.next = at, at += extras;
        s.before = at, at += extras;
        s.loaded = bytes + n;
        Played now = {.node = at, .last = at + runs}, then = {.node = at + 2 * runs, .last = at + 3 * runs};
        copy(&d, &s, &best);
        for (int32_t i = 0; i < nodes; i++) s.position[s.order[i]] = i;
        play(&d, &s, &now, &r);
        best_cost = now.excess == 0 ? now.cost : -1;
        for (int64_t round = 0; round < rounds && !*stop; round++) {
            const double heat = hot * pow(cold / hot, (double)round / (double)rounds);
            const Change old = change(&d, &s, &now, &r);
            if (old.extra < 0 && old.from < 0) continue;
            play(&d, &s, &then, &r);
            const double worse = (double)(then.cost - now.cost) + excess_cost * (then.excess - now.excess);
            if (worse > 0 && unit(&r) >= exp(-worse / heat)) {
                undo(&s, old);
                continue;
            }
            const Played other = now;
            now = then, then = other;
            if (now.excess == 0 && (best_cost < 0 || now.cost < best_cost)) {
                best_cost = now.cost;
                copy(&d, &best, &s);
            }
        }
    }
    free(narrow), free(change_room), free(bytes);
    return best_cost;
}
