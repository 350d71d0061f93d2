/* SPDX-License-Identifier: MIT
 * Planned graphs of a session, made when first asked for and kept by shape. */
#include "pipeline/session.h"
#include <string.h>

static const char *const net_names[] = {"text encoder", "text encoder 2", "unet", "vae decoder",
                                        "vae encoder"};

static void build(struct session *s, const struct net_key *k, struct graph *g)
{
    const struct sd_model *m = &s->e->model;

    gr_init(g, net_names[k->kind]);
    switch (k->kind) {
    case NET_TE0:
    case NET_TE1:
        clip_graph(g, &m->te[k->kind - NET_TE0], k->n, (int)k->tokens, k->h, k->w != 0,
                   k->taps);
        break;
    case NET_UNET:
        unet_graph(g, &m->unet, k->n, k->h, k->w, k->tokens, k->taps);
        break;
    case NET_DECODE:
        vae_decode_graph(g, &m->vae, k->part, k->n, k->h, k->w);
        break;
    case NET_ENCODE:
        vae_encode_graph(g, &m->vae, k->part, k->n, k->h, k->w);
        break;
    }
}

static const struct delta_set *deltas(const struct session *s)
{
    return s->set != NULL ? adapter_set_deltas(s->set) : NULL;
}

static kron_status build_planned(struct session *s, const struct net_key *k, struct graph *g)
{
    build(s, k, g);
    if (k->hold)
        gr_hold(g, deltas(s));
    return gr_plan(g);
}

static bool is_quantised(const struct layer_table *t)
{
    for (int i = 0; i < t->n; i++)
        if (dtype_is_quantised(t->at[i]->weight.type))
            return true;
    return false;
}

/* Text encoders and the VAE run once for a picture: they stay exact. */
static bool computes_int8(const struct session *s, const struct net_key *k)
{
    return s->params.compute == KRON_COMPUTE_INT8 && k->kind == NET_UNET &&
           s->e->device->caps.int8_bits > 0;
}

/* What a process takes beside weights and compute buffers: code, libraries, headers, pictures. */
static const size_t other_bytes = 160 << 20;

static size_t take(size_t from, size_t n)
{
    return from > n ? from - n : 0;
}

static bool is_mapped(const struct engine *e, const struct layer *l)
{
    const struct st_file *f;

    for (int i = 0; (f = store_source(e->model.store, i)) != NULL; i++)
        if (st_maps(f, l->weight.data))
            return true;
    return engine_quantised_maps(e, l->weight.data);
}

/* The operation of the band before this one, of the same layer; NULL if there is none. */
static const struct gr_op *band_before(const struct graph *g, int o)
{
    for (int i = o - 1; i >= 0 && i >= o - 2; i--)
        if (g->ops[i].layer == g->ops[o].layer)
            return &g->ops[i];
    return NULL;
}

/* Of the operations that run once, or of the others. Returns the bytes that come and go. */
static size_t mark_some(const struct session *s, struct graph *g, bool once, size_t *left)
{
    size_t gone = 0;

    for (int o = 0; o < g->n_ops; o++) {
        struct gr_op *op = &g->ops[o];
        const struct gr_op *before = band_before(g, o);
        const struct layer *l = op->layer;
        if (l == NULL || op->once != once || op->kind == OP_EMBED || !is_mapped(s->e, l))
            continue;
        op->pages = before != NULL ? before->pages : l->weight.bytes > *left;
        if (before != NULL)
            continue;
        *left -= op->pages ? 0 : l->weight.bytes;
        gone += op->pages ? l->weight.bytes : 0;
    }
    return gone;
}

/* Weights stay in memory while they fit beside the buffer, the first ones of the graph; the others
 * come and go. Taking all in turn out would leave none there when the next step begins. Those that
 * a step does not read come last. Rows of token tables are few. `taken`: compute buffer, and what
 * was made of weights. */
static void mark_pages(const struct session *s, struct graph *g, size_t taken)
{
    size_t left = take((size_t)s->params.max_memory, taken + other_bytes), gone, rare;

    if (s->params.max_memory <= 0)
        return;
    for (int o = 0; o < g->n_ops; o++)
        if (g->ops[o].route == ROUTE_MERGED)
            left = take(left, (size_t)(g->ops[o].layer->out * layer_k(g->ops[o].layer)) * 4);
    gone = mark_some(s, g, false, &left);
    rare = mark_some(s, g, true, &left);
    if (gone + rare > 0)
        log_debug("%s: %.1f MB of weights are read anew at each run, %.1f MB for each prompt, to "
                  "keep within %.1f MB", g->name, (double)gone / 1e6, (double)rare / 1e6,
                  (double)s->params.max_memory / 1e6);
}

static size_t weight_bytes(const struct session *s)
{
    const struct layer_table *t = &s->e->model.layers;
    size_t sum = 0;

    for (int i = 0; i < t->n; i++)
        sum += t->at[i]->weight.bytes;
    return sum;
}

/* Giving pages back and finding them again costs more than opening the model: only where they are
 * wanted. */
void session_done_with(struct session *s, enum layer_part part)
{
    const struct layer_table *t = &s->e->model.layers;
    size_t room = s->params.max_memory > 0 ? (size_t)s->params.max_memory
                                           : s->e->device->caps.memory_free;

    if (room == 0 || weight_bytes(s) + other_bytes <= room / 2)
        return;
    for (int i = 0; i < t->n; i++)
        if (t->at[i]->part == part && is_mapped(s->e, t->at[i]))
            map_release(t->at[i]->weight.data, t->at[i]->weight.bytes);
}

/* Merging of its own accord, where adapters would cost time, may take half of what the device has
 * left: several on every layer of SDXL need 10 GB. Who takes a quantised model, or a model with
 * quantised parts, wants its size: there nothing becomes f32 unless asked for. */
static size_t merge_budget(const struct session *s)
{
    if (is_quantised(&s->e->model.layers))
        return 0;
    size_t all = s->params.max_memory > 0 ? (size_t)s->params.max_memory
                                          : s->e->device->caps.memory_free;

    return all / 2;
}

size_t session_room(const struct session *s)
{
    size_t all = s->params.max_memory > 0 ? (size_t)s->params.max_memory
                                          : s->e->device->caps.memory_free;

    return all > 0 ? all / 2 : SIZE_MAX;
}

static kron_status make_binds(struct session *s, struct net *net)
{
    void *p;

    KRON_TRY(mem_alloc_n(&p, (size_t)net->g.n_binds, sizeof *net->bind, net->g.name));
    net->bind = p;
    for (int i = 0; i < net->g.n_values; i++) {
        const struct gr_value *v = &net->g.values[i];
        if (v->bind >= 0)
            KRON_TRY(be_buf_alloc(s->e->device, (size_t)gr_elements(v->shape) * 4,
                                  &net->bind[v->bind]));
    }
    return KRON_OK;
}

static void net_free(struct session *s, struct net **net)
{
    struct net *n = *net;

    if (n == NULL)
        return;
    be_plan_free(s->e->device, &n->plan);
    for (int i = 0; n->bind != NULL && i < n->g.n_binds; i++)
        be_buf_free(&n->bind[i]);
    mem_free(n->bind);
    gr_free(&n->g);
    mem_free(n);
    *net = NULL;
}

static void log_plan(const struct net *net, size_t bytes, double seconds)
{
    const struct graph *g = &net->g;
    size_t held = g->held_bytes;

    log_debug("%s compute buffer: %.2f MB (values %.2f MB, at least %.2f MB; scratch %.2f MB), "
              "planned in %.0f ms", g->name, (double)(bytes - held) / 1e6,
              (double)(g->arena_bytes - held) / 1e6, (double)(g->lower_bound - held) / 1e6,
              (double)(bytes - g->arena_bytes) / 1e6, seconds * 1e3);
    if (held > 0)
        log_debug("%s: kept for the prompt: %.2f MB, with the compute buffer %.2f MB", g->name,
                  (double)held / 1e6, (double)bytes / 1e6);
}

static kron_status compile(struct session *s, struct net *net)
{
    const struct delta_set *set = deltas(s);
    double start = clock_seconds();
    size_t bytes, budget = merge_budget(s);

    KRON_TRY(build_planned(s, &net->key, &net->g));
    KRON_TRY(engine_make_weights(s->e, &net->g));
    if (set != NULL)
        KRON_TRY(be_measure(s->e->device));
    if (computes_int8(s, &net->key))
        gr_choose_int8(&net->g, set, s->e->device->caps.int8_bits, &budget);
    gr_choose_routes(&net->g, set, (enum gr_apply)s->params.apply, &s->e->device->caps.rates,
                     budget);
    KRON_TRY(be_plan_create(s->e->device, &net->g, s->weights, s->strengths, &net->plan));
    KRON_TRY(make_binds(s, net));
    bytes = be_plan_bytes(s->e->device, net->plan);
    mark_pages(s, &net->g, bytes + merge_budget(s) - budget);
    log_plan(net, bytes, clock_seconds() - start);
    return KRON_OK;
}

static bool same_key(const struct net_key *a, const struct net_key *b)
{
    return a->kind == b->kind && a->part == b->part && a->n == b->n && a->h == b->h &&
           a->w == b->w && a->tokens == b->tokens && a->taps == b->taps &&
           a->hold == b->hold;
}

/* A free slot, or that of the net longest unused. */
static struct net **slot_for(struct session *s)
{
    struct net **oldest = &s->nets[0];

    for (int i = 0; i < MAX_NETS; i++) {
        if (s->nets[i] == NULL)
            return &s->nets[i];
        if (s->nets[i]->used < (*oldest)->used)
            oldest = &s->nets[i];
    }
    net_free(s, oldest);
    return oldest;
}

static struct net *cached(const struct session *s, const struct net_key *key)
{
    for (int i = 0; i < MAX_NETS; i++)
        if (s->nets[i] != NULL && same_key(&s->nets[i]->key, key))
            return s->nets[i];
    return NULL;
}

kron_status net_get(struct session *s, const struct net_key *key, struct net **out)
{
    void *p;

    *out = cached(s, key);
    if (*out != NULL) {
        (*out)->used = ++s->clock;
        return KRON_OK;
    }
    KRON_TRY(mem_alloc(&p, sizeof **out, net_names[key->kind]));
    struct net *net = p;
    net->key = *key;
    net->used = ++s->clock;
    kron_status status = compile(s, net);
    if (status != KRON_OK) {
        net_free(s, &net);
        return status;
    }
    *slot_for(s) = net;
    *out = net;
    return KRON_OK;
}

/* A checkpoint's layers may fit each other and still make an output of another size. */
static kron_status buffer(struct net *net, const char *name, int64_t n, struct be_buf **out)
{
    int i = gr_bind(&net->g, name);

    KRON_ASSERT(i >= 0);
    *out = net->bind[i];
    if ((*out)->bytes != (size_t)n * 4)
        return err_set(KRON_ERR_SHAPE, "%s: '%s' of the checkpoint has %zu numbers, expected %lld",
                       net->g.name, name, (*out)->bytes / 4, (long long)n);
    return KRON_OK;
}

kron_status net_write(struct net *net, const char *name, const void *data, int64_t n)
{
    struct be_buf *b;

    KRON_TRY(buffer(net, name, n, &b));
    return be_buf_write(b, 0, data, (size_t)n * 4);
}

kron_status net_read(struct net *net, const char *name, float *data, int64_t n)
{
    struct be_buf *b;

    KRON_TRY(buffer(net, name, n, &b));
    return be_buf_read(b, 0, data, (size_t)n * 4);
}

kron_status net_run(struct session *s, struct net *net)
{
    const struct be_timer timer = {session_profile, s};
    size_t bytes = be_plan_bytes(s->e->device, net->plan);

    if (net->key.kind == NET_UNET) {
        s->buffers.unet = bytes - net->g.held_bytes;
        s->buffers.unet_kept = net->g.held_bytes;
    } else if (net->key.kind == NET_TE0 || net->key.kind == NET_TE1) {
        s->buffers.text_encoder = bytes;
    } else {
        s->buffers.vae = bytes;
    }
    return be_plan_run_timed(s->e->device, net->plan, net->bind, s->strengths,
                             s->profile != NULL ? &timer : NULL);
}

void nets_drop_all(struct session *s)
{
    for (int i = 0; i < MAX_NETS; i++)
        net_free(s, &s->nets[i]);
}

kron_status net_estimate(struct session *s, const struct net_key *key, size_t *bytes)
{
    const struct net *made = cached(s, key);
    struct be_plan *plan = NULL;
    struct graph g;

    if (made != NULL) {
        *bytes = be_plan_bytes(s->e->device, made->plan);
        return KRON_OK;
    }
    kron_status status = build_planned(s, key, &g);
    if (status == KRON_OK)
        status = be_plan_create(s->e->device, &g, s->weights, s->strengths, &plan);
    *bytes = status == KRON_OK ? be_plan_bytes(s->e->device, plan) : 0;
    be_plan_free(s->e->device, &plan);
    gr_free(&g);
    return status;
}
