/* SPDX-License-Identifier: MIT
 * Plans: no two values that live at the same time share bytes, but where an operation may run in
 * place; checked pair by pair on random graphs, by rules written down here again. And the size of
 * the shipped model's compute buffers, to the byte. */
#include "graph_fixture.h"
#include "model/model.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* --- random graphs --- */

static uint32_t roll(uint64_t *seed, uint32_t n)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*seed >> 33) % n;
}

enum { MAX_LAYERS = 400 };

struct maker {
    struct graph *g;
    uint64_t seed;
    struct layer layers[MAX_LAYERS];
    int n_layers;
};

static const struct layer *new_layer(struct maker *m, enum layer_kind kind, int64_t out, int64_t in,
                                     int k)
{
    assert_true(m->n_layers < MAX_LAYERS);
    m->layers[m->n_layers] = fx_layer(kind, "layer", out, in, k);
    return &m->layers[m->n_layers++];
}

static gr_ref any_value(struct maker *m)
{
    int n = m->g->n_values, recent = n < 6 ? n : 6;

    /* Mostly recent ones, as in a network; old ones now and then, as its long skips. */
    return (gr_ref)(roll(&m->seed, 4) ? n - 1 - (int)roll(&m->seed, (uint32_t)recent)
                                      : (int)roll(&m->seed, (uint32_t)n));
}

/* A value that fits beside x: all of the shape, or all but the channels. GR_NONE: none found. */
static gr_ref like(struct maker *m, struct gr_shape s, bool channels)
{
    for (int i = 0; i < 20; i++) {
        gr_ref v = any_value(m);
        struct gr_shape t = gr_shape_of(m->g, v);
        if (t.n == s.n && t.h == s.h && t.w == s.w && (!channels || t.c == s.c))
            return v;
    }
    return GR_NONE;
}

static void add_linear_or_conv(struct maker *m, gr_ref x, bool conv)
{
    struct gr_shape s = gr_shape_of(m->g, x);
    int64_t out = roll(&m->seed, 2) ? s.c : 8 << roll(&m->seed, 4);
    int stride = conv && s.h > 2 && s.w > 2 && roll(&m->seed, 4) == 0 ? 2 : 1;
    const struct layer *l =
        new_layer(m, conv ? LAYER_CONV : LAYER_LINEAR, out, s.c, conv ? 3 : 1);
    struct gr_shape y = s;

    y.c = out;
    gr_ref res = stride == 1 && roll(&m->seed, 2) ? like(m, y, true) : GR_NONE;
    if (conv)
        gr_conv(m->g, x, l, stride, GR_NONE, res);
    else
        gr_linear(m->g, x, l, ACT_NONE, res);
}

static void add_any(struct maker *m)
{
    gr_ref x = any_value(m);
    struct gr_shape s = gr_shape_of(m->g, x);
    gr_ref other;

    switch (roll(&m->seed, 10)) {
    case 0:
    case 1:
        add_linear_or_conv(m, x, false);
        break;
    case 2:
        add_linear_or_conv(m, x, true);
        break;
    case 3:
        gr_group_norm(m->g, x, new_layer(m, LAYER_NORM, s.c, 1, 1), 4, 1e-5f, ACT_SILU);
        break;
    case 4:
        gr_layer_norm(m->g, x, new_layer(m, LAYER_NORM, s.c, 1, 1), 1e-5f);
        break;
    case 5:
        gr_act(m->g, x, ACT_SILU);
        break;
    case 6:
        gr_add(m->g, x, (other = like(m, s, true)) != GR_NONE ? other : x);
        break;
    case 7:
        other = like(m, s, false);
        if (other != GR_NONE && s.c + gr_shape_of(m->g, other).c <= 256)
            gr_concat(m->g, x, other);
        break;
    case 8:
        if (s.h <= 16)
            gr_upsample(m->g, x, 2 * s.h, 2 * s.w - (int64_t)roll(&m->seed, 2));
        break;
    default:
        other = like(m, s, true);
        if (other != GR_NONE)
            gr_attention(m->g, x, other, other, 4, false);
    }
}

static void make_graph(struct maker *m, struct graph *g, uint64_t seed)
{
    *m = (struct maker){.g = g, .seed = seed};
    gr_init(g, "random");
    gr_input(g, "x", GR_F32, fx_shape(1 + (int64_t)roll(&m->seed, 2), 8, 7, 16));
    gr_input(g, "y", GR_F32, fx_shape(1, 8, 7, 16));
    for (int i = 0, n = 5 + (int)roll(&m->seed, 150); i < n; i++)
        add_any(m);
    for (int i = 0; i < 3; i++) {
        gr_ref v = g->n_values - 1 - (int)roll(&m->seed, (uint32_t)g->n_values / 2 + 1);
        if (v >= 2 && g->values[v].role == GR_TEMP)
            gr_output(g, v, "out");
    }
    assert_int_equal(g->status, KRON_OK);
}

/* --- the check --- */

struct life {
    int born, dies; /* operations; dies: the last that reads it, or writes a part of it */
    int done;       /* the last that writes to it */
    int64_t from, to; /* bytes */
};

static int64_t round_64(int64_t n)
{
    return (n + 63) / 64 * 64;
}

static struct life life_of(const struct graph *g, gr_ref v)
{
    struct life l = {-1, -1, -1, g->values[v].offset, 0};

    l.to = l.from + round_64(gr_elements(g->values[v].shape) * 4);
    if (g->values[v].held) { /* from run to run */
        l.born = 0;
        l.dies = l.done = g->n_ops - 1;
        return l;
    }

    for (int o = 0; o < g->n_ops; o++) {
        const struct gr_op *op = &g->ops[o];
        if (gr_root(g, op->out) == v) {
            l.born = l.born < 0 ? o : l.born;
            l.dies = l.done = o;
        }
        for (int i = 0; i < GR_MAX_IN; i++)
            if (gr_root(g, op->in[i]) == v)
                l.dies = o;
    }
    return l;
}

/* May op write over its input v? The residual of a product, and what is read number by number. */
static bool may_overwrite(const struct gr_op *op, gr_ref v)
{
    int reads = 0, at = -1;

    for (int i = 0; i < GR_MAX_IN; i++)
        if (op->in[i] == v)
            reads++, at = i;
    if (reads != 1)
        return false;
    switch (op->kind) {
    case OP_LINEAR:
    case OP_CONV2D:
        return at == 1;
    case OP_GROUP_NORM:
    case OP_LAYER_NORM:
    case OP_ACT:
    case OP_ADD:
        return true;
    default:
        return false;
    }
}

/* True if b was written over a as the rules allow. */
static bool in_place(const struct graph *g, const struct life *a, gr_ref va, const struct life *b)
{
    return !g->values[va].held && a->dies == b->born && a->from == b->from && a->to == b->to &&
           may_overwrite(&g->ops[b->born], va);
}

/* True if b, in parts, was written over a as its builder allows. */
static bool over(const struct graph *g, const struct life *a, gr_ref va, const struct life *b,
                 gr_ref vb)
{
    return g->values[vb].over == va && a->from == b->from && b->to <= a->to && a->dies <= b->done;
}

static bool own_memory(const struct graph *g, gr_ref v)
{
    return g->values[v].role == GR_TEMP && g->values[v].base == GR_NONE;
}

static int check_pairs(const struct graph *g, const struct life *lives)
{
    int shared = 0;

    for (gr_ref a = 0; a < g->n_values; a++)
        for (gr_ref b = 0; b < g->n_values; b++) {
            const struct life *x = &lives[a], *y = &lives[b];
            if (a == b || !own_memory(g, a) || !own_memory(g, b))
                continue;
            if (x->from >= y->to || y->from >= x->to) /* apart in space */
                continue;
            if (x->dies < y->born || y->dies < x->born) /* apart in time */
                continue;
            if (in_place(g, x, a, y))
                shared++;
            else if (!in_place(g, y, b, x) && !over(g, x, a, y, b) && !over(g, y, b, x, a))
                fail_msg("values %d and %d overlap", a, b);
        }
    return shared;
}

/* The most bytes of values alive at one operation, those written in place counted once. */
static int64_t most_alive(const struct graph *g, const struct life *lives)
{
    int64_t most = 0;

    for (int o = 0; o < g->n_ops; o++) {
        int64_t sum = 0;
        for (gr_ref v = 0; v < g->n_values; v++) {
            const struct life *l = &lives[v], *out = &lives[g->ops[o].out];
            if (!own_memory(g, v) || l->born > o || l->dies < o)
                continue;
            if (v == g->ops[o].out || g->values[g->ops[o].out].role != GR_TEMP ||
                !in_place(g, l, v, out))
                sum += l->to - l->from;
        }
        most = sum > most ? sum : most;
    }
    return most;
}

/* Returns how many operations run in place. */
static int check_plan(const struct graph *g)
{
    struct life *lives = calloc((size_t)g->n_values, sizeof *lives);
    int64_t end = 0;
    bool parts = false;
    int shared;

    assert_non_null(lives);
    for (gr_ref v = 0; v < g->n_values; v++) {
        gr_ref root = gr_root(g, v);
        lives[v] = life_of(g, v);
        parts = parts || root != v;
        if (root != v && g->values[root].role == GR_TEMP) {
            struct gr_shape s = g->values[v].shape;
            assert_int_equal(g->values[v].offset,
                             g->values[root].offset + g->values[v].row * s.w * s.c * 4);
            continue;
        }
        if (g->values[v].role != GR_TEMP) {
            assert_int_equal(g->values[v].offset, -1);
            continue;
        }
        assert_true(lives[v].from >= 0 && lives[v].from % 64 == 0);
        end = lives[v].to > end ? lives[v].to : end;
    }
    shared = check_pairs(g, lives);
    assert_int_equal(g->arena_bytes, end);
    if (!parts) /* what is written over something longer keeps all of it */
        assert_int_equal(g->lower_bound, most_alive(g, lives));
    assert_true(g->arena_bytes >= g->lower_bound);
    free(lives);
    return shared;
}

static void values_alive_together_are_apart(void **state)
{
    static struct maker m;
    int shared = 0;
    double waste = 0;
    struct graph g;

    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        make_graph(&m, &g, seed);
        assert_int_equal(gr_plan(&g), KRON_OK);
        shared += check_plan(&g);
        waste += g.lower_bound > 0 ? (double)g.arena_bytes / (double)g.lower_bound : 1;
        gr_free(&g);
    }
    assert_true(shared > 300); /* else nothing was tested of running in place */
    if (waste / 300 > 1.1)
        fail_msg("arenas are %.3f times their lower bounds", waste / 300);
}

/* Whether v depends on inputs other than y. */
static bool depends_on_x(const struct graph *g, gr_ref v)
{
    if (g->values[v].role == GR_INPUT)
        return !g->values[v].steady;
    for (int o = 0; o < g->n_ops; o++)
        for (int i = 0; g->ops[o].out == v && i < GR_MAX_IN; i++)
            if (g->ops[o].in[i] != GR_NONE && depends_on_x(g, g->ops[o].in[i]))
                return true;
    return false;
}

/* Every operation is `once` that can be, and what others read of them is held, nothing else.
 * Returns how many values are. */
static int check_held(const struct graph *g)
{
    bool *read = calloc((size_t)g->n_values, sizeof *read), *once = calloc((size_t)g->n_values, 1);
    size_t bytes = 0;
    int n = 0;

    assert_true(read != NULL && once != NULL);
    for (int o = 0; o < g->n_ops; o++) {
        const struct gr_op *op = &g->ops[o];
        bool can = g->values[op->out].role == GR_TEMP;
        for (int i = 0; i < GR_MAX_IN; i++) {
            gr_ref v = op->in[i];
            can = can && (v == GR_NONE || g->values[v].steady || once[v]);
            if (v != GR_NONE && !op->once)
                read[v] = true;
        }
        assert_int_equal(op->once, can);
        once[op->out] = can;
        assert_false(can && depends_on_x(g, op->out));
    }
    for (gr_ref v = 0; v < g->n_values; v++) {
        assert_int_equal(g->values[v].held, once[v] && read[v]);
        bytes += g->values[v].held ? (size_t)round_64(gr_elements(g->values[v].shape) * 4) : 0;
        n += g->values[v].held;
    }
    for (gr_ref v = 0; v < g->n_values; v++) /* held ones are the first */
        if (g->values[v].role == GR_TEMP)
            assert_int_equal(g->values[v].held, (size_t)g->values[v].offset < bytes);
    assert_int_equal(g->held_bytes, bytes);
    free(read);
    free(once);
    return n;
}

static void what_is_held_is_apart_for_good(void **state)
{
    static struct maker m;
    struct graph g;
    int held = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        make_graph(&m, &g, seed);
        gr_steady(&g, 1);
        gr_hold(&g, NULL);
        assert_int_equal(gr_plan(&g), KRON_OK);
        check_plan(&g);
        held += check_held(&g);
        gr_free(&g);
    }
    assert_true(held > 300);
}

static void the_same_graph_has_the_same_plan(void **state)
{
    static struct maker m, n;
    struct graph a, b;

    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        make_graph(&m, &a, seed);
        make_graph(&n, &b, seed);
        assert_int_equal(gr_plan(&a), KRON_OK);
        assert_int_equal(gr_plan(&b), KRON_OK);
        assert_int_equal(gr_plan(&b), KRON_OK); /* planned again: the same too */
        assert_int_equal(a.arena_bytes, b.arena_bytes);
        assert_int_equal(a.n_values, b.n_values);
        for (int v = 0; v < a.n_values; v++)
            assert_int_equal(a.values[v].offset, b.values[v].offset);
        gr_free(&a);
        gr_free(&b);
    }
}

static void chains_run_in_place(void **state)
{
    const struct layer l = fx_layer(LAYER_LINEAR, "l", 16, 16, 1);
    const struct layer norm = fx_layer(LAYER_NORM, "n", 16, 1, 1);
    struct graph g;

    (void)state;
    gr_init(&g, "chain");
    gr_ref x = gr_input(&g, "x", GR_F32, fx_shape(1, 8, 8, 16));
    gr_ref a = gr_linear(&g, x, &l, ACT_NONE, GR_NONE);
    gr_ref b = gr_act(&g, a, ACT_SILU);               /* over a */
    gr_ref c = gr_group_norm(&g, b, &norm, 4, 1e-5f, ACT_NONE); /* over b */
    gr_ref d = gr_linear(&g, x, &l, ACT_NONE, c);     /* over its residual c */
    gr_ref e = gr_linear(&g, d, &l, ACT_NONE, GR_NONE); /* not over d: read again and again */
    gr_ref f = gr_add(&g, e, e);                      /* not over e: it is read twice */
    gr_ref h = gr_layer_norm(&g, f, &norm, 1e-5f);    /* f lives on */
    gr_output(&g, gr_add(&g, f, h), "y");
    assert_int_equal(gr_plan(&g), KRON_OK);
    assert_int_equal(check_plan(&g), 3);
    assert_true(g.values[a].offset == g.values[d].offset);
    assert_true(g.values[d].offset != g.values[e].offset);
    assert_true(g.values[e].offset != g.values[f].offset);
    assert_int_equal(g.arena_bytes, 2 * 8 * 8 * 16 * 4);
    gr_free(&g);
}

static void no_operations_no_bytes(void **state)
{
    struct graph g;

    (void)state;
    gr_init(&g, "empty");
    gr_input(&g, "x", GR_F32, fx_shape(1, 1, 1, 1));
    assert_int_equal(gr_plan(&g), KRON_OK);
    assert_int_equal(g.arena_bytes, 0);
    gr_free(&g);
}

/* --- the shipped model --- */

static void planned(struct graph *g, const char *what, size_t want)
{
    assert_int_equal(gr_plan(g), KRON_OK);
    check_plan(g);
    if (g->arena_bytes != want)
        fail_msg("%s: arena of %zu bytes (lower bound %zu), expected %zu", what, g->arena_bytes,
                 g->lower_bound, want);
    gr_free(g);
}

/* Golden numbers: a change of the graph or the planner that moves one should say why. */
static void the_shipped_models_buffers(void **state)
{
    struct store *store;
    struct sd_model m;
    struct graph g;

    (void)state;
    assert_int_equal(store_create(&store), KRON_OK);
    assert_int_equal(store_add_file(store, "", KRON_SOURCE_DIR "/models/emoji-sd.safetensors"),
                     KRON_OK);
    assert_int_equal(model_load(&m, store), KRON_OK);
    gr_init(&g, "unet");
    unet_graph(&g, &m.unet, 2, 32, 32, 77, false);
    planned(&g, "unet, both halves of guidance, 256x256", 4720640);
    gr_init(&g, "unet");
    unet_graph(&g, &m.unet, 1, 32, 32, 77, false);
    planned(&g, "unet, one half", 2360320);
    gr_init(&g, "vae decoder");
    vae_decode_graph(&g, &m.vae, VAE_WHOLE, 1, 32, 32);
    planned(&g, "vae decoder, 256x256", 33620480);
    gr_init(&g, "text encoder");
    clip_graph(&g, &m.te[0], 2, 1, 0, true, false);
    planned(&g, "text encoder, two windows", 473088);
    model_free(&m);
}

/* Without the last state the context's is the last: clip skip 2 saves a layer. */
static void text_layers_that_nothing_needs_are_left_out(void **state)
{
    struct sd_model m;
    struct store *store;
    struct graph all, less, first;

    (void)state;
    assert_int_equal(store_create(&store), KRON_OK);
    assert_int_equal(store_add_file(store, "", KRON_SOURCE_DIR "/models/emoji-sd.safetensors"),
                     KRON_OK);
    assert_int_equal(model_load(&m, store), KRON_OK);
    gr_init(&all, "all");
    clip_graph(&all, &m.te[0], 1, 2, 0, true, false);
    gr_init(&less, "less");
    clip_graph(&less, &m.te[0], 1, 2, 0, false, false);
    gr_init(&first, "first");
    clip_graph(&first, &m.te[0], 1, 1, 0, false, false);
    assert_int_equal(all.status, KRON_OK);
    assert_int_equal(less.status, KRON_OK);
    assert_true(gr_bind(&all, "final") >= 0 && gr_bind(&all, "context") >= 0);
    assert_true(gr_bind(&less, "final") < 0 && gr_bind(&less, "context") >= 0);
    assert_int_equal(all.n_ops - 1, first.n_ops); /* all but the norm of `final` */
    assert_true(less.n_ops < first.n_ops);
    gr_free(&all);
    gr_free(&less);
    gr_free(&first);
    model_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_alive_together_are_apart),
        cmocka_unit_test(what_is_held_is_apart_for_good),
        cmocka_unit_test(the_same_graph_has_the_same_plan),
        cmocka_unit_test(chains_run_in_place),
        cmocka_unit_test(no_operations_no_bytes),
        cmocka_unit_test(the_shipped_models_buffers),
        cmocka_unit_test(text_layers_that_nothing_needs_are_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
