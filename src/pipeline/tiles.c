/* SPDX-License-Identifier: MIT
 * The VAE on whole pictures or in tiles, so that its buffers fit the memory there is.
 *
 * The end on the latent's side, with the attention, always runs over the whole picture: it is
 * small. The rest runs in tiles that overlap and are blended. Group norms of a tile would take
 * the tile's statistics, and each tile would come out in another tone. So the rest runs first on
 * every n-th pixel of its input, as many as make one tile, twice: the statistics of both, close to
 * those of the whole, serve all tiles. Measured on the shipped model at 512x512 in tiles of 256:
 * 23 dB with own statistics, 26 with the mean of all tiles', 31 with those of a picture made smaller by
 * means, 37 with every n-th pixel, 57 with the whole's own. Each tile's numbers under these
 * statistics, taken for a second round, move away from the whole's: the edges of tiles count. */
#include "pipeline/session.h"
#include <math.h>
#include <string.h>

struct tiles {
    struct session *s;
    enum net_kind kind;
    const char *in_name, *out_name; /* of the part that runs in tiles */
    int64_t h, w;         /* latent size of the whole */
    int64_t th, tw;       /* of a tile */
    double overlap;
    int64_t in_f, out_f;  /* pixels a latent pixel, of input and output */
    int64_t in_c, out_c;
    const float *in;
    float *out, *weight;  /* sums, and of the weights [h*out_f, w*out_f] */
    float *a, *b;         /* one tile in and out */
    float *stats;         /* of all norms, one behind the other */
};

/* --- nets --- */

static struct net_key key_of(const struct tiles *t, enum vae_part part, int64_t h, int64_t w)
{
    int64_t f = t->kind == NET_ENCODE ? t->s->e->model.vae.factor : 1;
    struct net_key key = {.kind = t->kind, .part = part, .n = 1, .h = h * f, .w = w * f};

    return key;
}

static kron_status run_net(struct tiles *t, enum vae_part part, int64_t h, int64_t w,
                           const char *in_name, const float *in, int64_t n_in,
                           const char *out_name, float *out, int64_t n_out)
{
    struct net_key key = key_of(t, part, h, w);
    struct net *net;

    KRON_TRY(net_get(t->s, &key, &net));
    KRON_TRY(net_write(net, in_name, in, n_in));
    KRON_TRY(net_run(t->s, net));
    return net_read(net, out_name, out, n_out);
}

static bool is_stats(const struct gr_value *v)
{
    return str_starts(v->name, "stats");
}

static kron_status make_stats(struct tiles *t, const struct graph *g)
{
    int64_t n = 0;

    for (int i = 0; i < g->n_values; i++)
        n += is_stats(&g->values[i]) ? gr_elements(g->values[i].shape) : 0;
    return mem_floats(&t->stats, n, "statistics of a picture");
}

/* Joins two samples' [mean, 1 / deviation], n channels, to those of both together. */
static void join(float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double half = ((double)a[i] - b[i]) / 2, u = 1 / (double)a[n + i], v = 1 / (double)b[n + i];
        a[i] = (float)(((double)a[i] + b[i]) / 2);
        a[n + i] = (float)(1 / sqrt((u * u + v * v) / 2 + half * half));
    }
}

/* The statistics that a net gave; a second net's are joined to them. */
static kron_status take_stats(struct tiles *t, struct net *net)
{
    bool first = t->stats == NULL;
    float *to, *more;
    int64_t n;

    if (first)
        KRON_TRY(make_stats(t, &net->g));
    to = t->stats;
    for (int i = 0; i < net->g.n_values; i++, to += n) {
        const struct gr_value *v = &net->g.values[i];
        n = is_stats(v) ? gr_elements(v->shape) : 0;
        if (n > 0 && first)
            KRON_TRY(net_read(net, v->name, to, n));
        if (n == 0 || first)
            continue;
        KRON_TRY(mem_floats(&more, n, "statistics of a picture"));
        kron_status status = net_read(net, v->name, more, n);
        join(to, more, v->shape.c);
        mem_free(more);
        KRON_TRY(status);
    }
    return KRON_OK;
}

static kron_status give_stats(const struct tiles *t, struct net *net)
{
    const float *from = t->stats;

    for (int i = 0; i < net->g.n_values; i++) {
        const struct gr_value *v = &net->g.values[i];
        if (!is_stats(v))
            continue;
        KRON_TRY(net_write(net, v->name, from, gr_elements(v->shape)));
        from += gr_elements(v->shape);
    }
    return KRON_OK;
}

/* --- tiles --- */

/* Every n-th pixel of the input, as many as a tile has: the first of each n, or the last. */
static void copy_sparse(const struct tiles *t, bool last)
{
    int64_t h = t->h * t->in_f, w = t->w * t->in_f, n = t->th * t->in_f, m = t->tw * t->in_f;

    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++) {
            int64_t y = last ? ((i + 1) * h - 1) / n : i * h / n;
            int64_t x = last ? ((j + 1) * w - 1) / m : j * w / m;
            memcpy(t->a + (i * m + j) * t->in_c, t->in + (y * w + x) * t->in_c,
                   (size_t)t->in_c * sizeof *t->a);
        }
}

static kron_status find_stats(struct tiles *t)
{
    struct net_key key = key_of(t, VAE_STATS, t->th, t->tw);
    struct net *net;

    for (int last = 0; last < 2; last++) {
        copy_sparse(t, last == 1);
        KRON_TRY(net_get(t->s, &key, &net));
        KRON_TRY(net_write(net, t->in_name, t->a, t->th * t->tw * t->in_f * t->in_f * t->in_c));
        KRON_TRY(net_run(t->s, net));
        KRON_TRY(take_stats(t, net));
    }
    return KRON_OK;
}

static void copy_in(const struct tiles *t, int64_t y, int64_t x)
{
    int64_t row = t->tw * t->in_f * t->in_c;

    for (int64_t i = 0; i < t->th * t->in_f; i++)
        memcpy(t->a + i * row, t->in + ((y * t->in_f + i) * t->w * t->in_f + x * t->in_f) * t->in_c,
               (size_t)row * sizeof *t->a);
}

/* Falls linearly from the middle of a tile to its edge; never 0, so that every pixel has some. */
static float ramp(int64_t i, int64_t n)
{
    double middle = (double)(n - 1) / 2;

    return (float)(1.0 / (double)n + 1 - fabs((double)i - middle) / (middle + 1));
}

static void add_out(const struct tiles *t, int64_t y, int64_t x)
{
    int64_t oh = t->th * t->out_f, ow = t->tw * t->out_f, all = t->w * t->out_f;

    for (int64_t i = 0; i < oh; i++)
        for (int64_t j = 0; j < ow; j++) {
            int64_t at = (y * t->out_f + i) * all + x * t->out_f + j;
            float w = ramp(i, oh) * ramp(j, ow);
            t->weight[at] += w;
            for (int64_t c = 0; c < t->out_c; c++)
                t->out[at * t->out_c + c] += w * t->b[(i * ow + j) * t->out_c + c];
        }
}

static kron_status one_tile(struct tiles *t, int64_t y, int64_t x)
{
    int64_t pixels = t->th * t->tw;
    struct net_key key = key_of(t, VAE_TILE, t->th, t->tw);
    struct net *net;

    copy_in(t, y, x);
    KRON_TRY(net_get(t->s, &key, &net));
    KRON_TRY(give_stats(t, net));
    KRON_TRY(net_write(net, t->in_name, t->a, pixels * t->in_f * t->in_f * t->in_c));
    KRON_TRY(net_run(t->s, net));
    KRON_TRY(net_read(net, t->out_name, t->b, pixels * t->out_f * t->out_f * t->out_c));
    add_out(t, y, x);
    return KRON_OK;
}

/* Where tile number i begins: evenly stepped, the last moved back to end with the picture. */
static int64_t start_of(int64_t i, int64_t step, int64_t tile, int64_t whole)
{
    int64_t at = i * step;

    return at + tile > whole ? whole - tile : at;
}

static int64_t step_of(const struct tiles *t, int64_t tile)
{
    int64_t step = tile - (int64_t)(t->overlap * (double)tile);

    return step < 1 ? 1 : step;
}

static int64_t count_tiles(int64_t whole, int64_t tile, int64_t step)
{
    return whole <= tile ? 1 : (whole - tile + step - 1) / step + 1;
}

static kron_status all_tiles(struct tiles *t)
{
    int64_t dy = step_of(t, t->th), dx = step_of(t, t->tw);
    int64_t rows = count_tiles(t->h, t->th, dy), cols = count_tiles(t->w, t->tw, dx);
    int64_t pixels = t->h * t->w * t->out_f * t->out_f;

    memset(t->out, 0, (size_t)(pixels * t->out_c) * sizeof *t->out);
    KRON_TRY(find_stats(t));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            KRON_TRY(one_tile(t, start_of(i, dy, t->th, t->h), start_of(j, dx, t->tw, t->w)));
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < t->out_c; c++)
            t->out[i * t->out_c + c] /= t->weight[i];
    return KRON_OK;
}

static kron_status run_tiles(struct tiles *t)
{
    int64_t pixels = t->th * t->tw;
    kron_status status = mem_floats(&t->weight, t->h * t->w * t->out_f * t->out_f, "tiles");

    if (status == KRON_OK)
        status = mem_floats(&t->a, pixels * t->in_f * t->in_f * t->in_c, "a tile");
    if (status == KRON_OK)
        status = mem_floats(&t->b, pixels * t->out_f * t->out_f * t->out_c, "a tile");
    if (status == KRON_OK)
        status = all_tiles(t);
    mem_free(t->weight);
    mem_free(t->a);
    mem_free(t->b);
    mem_free(t->stats);
    return status;
}

/* --- the choice --- */

enum { LEAST_TILE = 8, MOST_TILE = 256, DEFAULT_TILE = 32 }; /* latent pixels */

/* Bytes of the largest compute buffer if tiles have this size; of none: of the whole. */
static kron_status buffer_of(const struct tiles *t, int64_t th, int64_t tw, size_t *bytes)
{
    struct net_key whole = key_of(t, VAE_WHOLE, t->h, t->w), ends = key_of(t, VAE_ENDS, t->h, t->w);
    struct net_key tile = key_of(t, VAE_TILE, th, tw);
    size_t more;

    if (th >= t->h && tw >= t->w)
        return net_estimate(t->s, &whole, bytes);
    KRON_TRY(net_estimate(t->s, &ends, bytes));
    KRON_TRY(net_estimate(t->s, &tile, &more));
    *bytes = more > *bytes ? more : *bytes;
    return KRON_OK;
}

/* The whole where it fits, else the largest tile that does. */
static kron_status fit_tile(struct tiles *t, size_t room, size_t *bytes)
{
    KRON_TRY(buffer_of(t, t->h, t->w, bytes));
    t->th = t->h;
    t->tw = t->w;
    for (int64_t side = MOST_TILE; *bytes > room && side >= LEAST_TILE; side -= side / 4) {
        t->th = side < t->h ? side : t->h;
        t->tw = side < t->w ? side : t->w;
        KRON_TRY(buffer_of(t, t->th, t->tw, bytes));
    }
    return KRON_OK;
}

static kron_status choose(struct tiles *t, const struct tiling *how)
{
    size_t room = session_room(t->s), whole, bytes;

    t->overlap = how->overlap;
    KRON_TRY(buffer_of(t, t->h, t->w, &whole));
    if (!how->on) {
        KRON_TRY(fit_tile(t, room, &bytes));
    } else {
        int64_t th = how->h > 0 ? how->h : DEFAULT_TILE, tw = how->w > 0 ? how->w : DEFAULT_TILE;
        t->th = th < t->h ? th : t->h;
        t->tw = tw < t->w ? tw : t->w;
        KRON_TRY(buffer_of(t, t->th, t->tw, &bytes));
        if (bytes > room && how->h == 0 && how->w == 0)
            KRON_TRY(fit_tile(t, room, &bytes));
    }
    if (t->th < t->h || t->tw < t->w)
        log_debug("vae: in tiles of %lldx%lld latent pixels, %.0f %% of each overlapping: buffers "
                  "of %.1f MB instead of %.1f (room for %.1f)", (long long)t->tw, (long long)t->th,
                  t->overlap * 100, (double)bytes / 1e6, (double)whole / 1e6, (double)room / 1e6);
    return KRON_OK;
}

/* --- both ways --- */

static kron_status decode(struct tiles *t, const struct vae *v, const float *latent, float *image)
{
    int64_t pixels = t->h * t->w, n = pixels * v->latent_channels;
    float *features;

    if (t->th >= t->h && t->tw >= t->w)
        return run_net(t, VAE_WHOLE, t->h, t->w, "latent", latent, n, "image", image,
                       pixels * v->factor * v->factor * 3);
    KRON_TRY(mem_floats(&features, pixels * t->in_c, "the middle of a VAE"));
    kron_status status = run_net(t, VAE_ENDS, t->h, t->w, "latent", latent, n, "features",
                                 features, pixels * t->in_c);
    t->in = features;
    t->out = image;
    if (status == KRON_OK)
        status = run_tiles(t);
    mem_free(features);
    return status;
}

kron_status latent_decode(struct session *s, const float *latent, int64_t h, int64_t w,
                          const struct tiling *how, float *image)
{
    const struct vae *v = &s->e->model.vae;
    struct tiles t = {.s = s, .kind = NET_DECODE, .in_name = "features", .out_name = "image",
                      .h = h, .w = w, .in_f = 1, .out_f = v->factor,
                      .in_c = vae_features(&v->decoder), .out_c = 3};
    int64_t n = h * w * v->latent_channels;
    float *scaled;

    KRON_TRY(mem_floats(&scaled, n, "a latent"));
    for (int64_t i = 0; i < n; i++)
        scaled[i] = latent[i] / v->scale;
    kron_status status = choose(&t, how);
    if (status == KRON_OK)
        status = decode(&t, v, scaled, image);
    mem_free(scaled);
    return status;
}

static kron_status encode(struct tiles *t, const struct vae *v, const float *image, float *moments)
{
    int64_t pixels = t->h * t->w, n = 2 * pixels * v->latent_channels;

    if (t->th >= t->h && t->tw >= t->w)
        return run_net(t, VAE_WHOLE, t->h, t->w, "image", image, pixels * v->factor * v->factor * 3,
                       "moments", moments, n);
    KRON_TRY(mem_floats(&t->out, pixels * t->out_c, "the middle of a VAE"));
    t->in = image;
    kron_status status = run_tiles(t);
    if (status == KRON_OK)
        status = run_net(t, VAE_ENDS, t->h, t->w, "features", t->out, pixels * t->out_c, "moments",
                         moments, n);
    mem_free(t->out);
    return status;
}

kron_status latent_encode(struct session *s, const float *image, int64_t h, int64_t w,
                          const struct tiling *how, float *latent)
{
    const struct vae *v = &s->e->model.vae;
    int64_t c = v->latent_channels;
    struct tiles t = {.s = s, .kind = NET_ENCODE, .in_name = "image", .out_name = "features",
                      .h = h, .w = w, .in_f = v->factor, .out_f = 1, .in_c = 3,
                      .out_c = v->encoder.conv_in != NULL ? vae_features(&v->encoder) : 0};
    float *moments;

    if (v->encoder.conv_in == NULL)
        return err_set(KRON_ERR_UNSUPPORTED, "the model's VAE has no encoder: a start picture "
                       "needs one");
    KRON_TRY(mem_floats(&moments, h * w * 2 * c, "a latent"));
    kron_status status = choose(&t, how);
    if (status == KRON_OK)
        status = encode(&t, v, image, moments);
    for (int64_t i = 0; i < h * w; i++)
        for (int64_t k = 0; k < c; k++)
            latent[i * c + k] = moments[i * 2 * c + k] * v->scale;
    mem_free(moments);
    return status;
}
