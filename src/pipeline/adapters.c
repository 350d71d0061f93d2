/* SPDX-License-Identifier: MIT
 * Lists of adapters in use: from the API's structs, from text, from a prompt's tags. */
#include "image/image.h"
#include "pipeline/session.h"
#include <math.h>
#include <string.h>

void use_list_free(struct use_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        adapter_unref(&l->at[i].adapter);
    mem_free(l->at);
    arena_free(&l->mem);
    memset(l, 0, sizeof *l);
}

/* --- regions --- */

/* A mask has no more pixels a side than this: twice the latent of a picture of 2048. */
enum { MASK_SIDE = 512, RECTANGLE_SIDE = 256 };

static bool has_rectangle(const float r[4])
{
    return r[0] != 0 || r[1] != 0 || r[2] != 0 || r[3] != 0;
}

/* How much of cell i of n lies in [from, to), shares of the whole. */
static float covered(int i, int n, float from, float to)
{
    float a = fmaxf((float)i, from * (float)n), b = fminf((float)(i + 1), to * (float)n);

    return b > a ? b - a : 0;
}

static kron_status make_region(struct arena *mem, struct use *x)
{
    const kron_image *m = &x->mask;
    const float *r = x->region;
    bool rectangle = has_rectangle(r);
    int w = m->pixels ? m->width : RECTANGLE_SIDE, h = m->pixels ? m->height : RECTANGLE_SIDE;

    x->u.region = NULL;
    if (m->pixels == NULL && !rectangle)
        return KRON_OK;
    struct delta_region *region = arena_alloc(mem, sizeof *region);
    float *mask = arena_alloc(mem, (size_t)w * (size_t)h * sizeof *mask);
    if (region == NULL || mask == NULL)
        return mem->status;
    for (int i = 0; i < w * h; i++) {
        mask[i] = m->pixels ? (float)m->pixels[i] / 255 : 1;
        if (rectangle)
            mask[i] *= covered(i % w, w, r[0], r[2]) * covered(i / w, h, r[1], r[3]);
    }
    *region = (struct delta_region){w, h, mask};
    x->u.region = region;
    return KRON_OK;
}

/* A copy of the caller's mask: grey, and no larger than it need be. */
static kron_status small_mask(const kron_image *in, kron_image *out)
{
    int w = in->width < MASK_SIDE ? in->width : MASK_SIDE;
    int h = in->height < MASK_SIDE ? in->height : MASK_SIDE;

    if (w != in->width || h != in->height) {
        KRON_TRY(image_resize(out, in, w, h));
    } else {
        KRON_TRY(image_alloc(out, w, h, in->channels));
        memcpy(out->pixels, in->pixels, (size_t)w * (size_t)h * (size_t)in->channels);
    }
    return image_convert(out, 1);
}

/* --- adding --- */

/* A copy of n elements in the list's memory; NULL of NULL. */
static kron_status copy(struct use_list *l, const void *from, size_t n, size_t size,
                        const void **out)
{
    *out = NULL;
    if (from == NULL)
        return KRON_OK;
    void *own = arena_alloc(&l->mem, n * size);
    if (own == NULL)
        return l->mem.status;
    *out = n > 0 ? memcpy(own, from, n * size) : own;
    return KRON_OK;
}

kron_status use_list_add_one(struct use_list *l, const struct use *from)
{
    struct use x = *from;
    size_t pixels = (size_t)x.mask.width * (size_t)x.mask.height;
    const void *blocks, *points, *mask;

    if (l->n == l->cap) {
        void *p = l->at;
        size_t cap = l->cap ? 2 * l->cap : 4;
        KRON_TRY(mem_grow(&p, l->cap, cap, sizeof *l->at, "adapters"));
        l->at = p;
        l->cap = cap;
    }
    KRON_TRY(copy(l, x.u.blocks, ADAPTER_BLOCKS, sizeof *x.u.blocks, &blocks));
    KRON_TRY(
        copy(l, x.u.steps.points, (size_t)x.u.steps.n_points, sizeof *x.u.steps.points, &points));
    KRON_TRY(copy(l, x.mask.pixels, pixels, 1, &mask));
    x.u.file = x.adapter->file;
    x.u.blocks = blocks;
    x.u.steps.points = points;
    x.mask.pixels = (uint8_t *)(uintptr_t)mask;
    KRON_TRY(make_region(&l->mem, &x));
    adapter_ref(x.adapter);
    l->at[l->n++] = x;
    return KRON_OK;
}

kron_status use_list_add_all(struct use_list *l, const struct use_list *from)
{
    for (size_t i = 0; i < from->n; i++)
        KRON_TRY(use_list_add_one(l, &from->at[i]));
    return KRON_OK;
}

/* With a picture that only needs to live during the call. */
static kron_status add_masked(struct use_list *l, struct use *x, const kron_image *mask)
{
    if (mask == NULL)
        return use_list_add_one(l, x);
    kron_status status = small_mask(mask, &x->mask);
    if (status == KRON_OK)
        status = use_list_add_one(l, x);
    image_free(&x->mask);
    return status;
}

/* --- from the API --- */

static bool all_finite(const float *v, size_t n)
{
    for (size_t i = 0; v != NULL && i < n; i++)
        if (!isfinite(v[i]))
            return false;
    return true;
}

static bool good_curve(const kron_step_point *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(p[i].at) || !isfinite(p[i].factor) || (i > 0 && p[i].at < p[i - 1].at))
            return false;
    return true;
}

static bool good_rectangle(const float r[4])
{
    return !has_rectangle(r) ||
           (r[0] >= 0 && r[0] < r[2] && r[2] <= 1 && r[1] >= 0 && r[1] < r[3] && r[3] <= 1);
}

static bool good_mask(const kron_image *m)
{
    return m == NULL || (m->pixels != NULL && m->width > 0 && m->height > 0 &&
                         (m->channels == 1 || m->channels == 3));
}

/* What is wrong with a use; NULL: nothing. */
static const char *fault(const kron_adapter_use *u)
{
    enum { MOST_POINTS = 100000 };

    if (u->adapter == NULL)
        return "adapter is NULL";
    if (!isfinite(u->te_strength) || !isfinite(u->unet_strength) || !isfinite(u->scale))
        return "a strength or scale is not finite";
    if (!all_finite(u->blocks, KRON_BLOCKS))
        return "a block weight is not finite";
    if (!(u->start >= 0 && isfinite(u->start)) || !(u->stop >= 0 && isfinite(u->stop)))
        return "start and stop: expected 0 or more";
    if ((u->n_curve > 0 && u->curve == NULL) || u->n_curve > MOST_POINTS)
        return "curve: expected up to 100000 points";
    if (!good_curve(u->curve, u->n_curve))
        return "curve: expected finite numbers at rising places";
    if (!good_mask(u->mask))
        return "mask: expected a picture of 1 or 3 channels";
    return good_rectangle(u->region) ? NULL
                                     : "region: expected left < right and top < bottom, 0 to 1";
}

kron_status use_list_add(struct use_list *l, const kron_adapter_use *use)
{
    const char *wrong = fault(use);
    struct use x = {.adapter = use->adapter};

    if (wrong != NULL)
        return err_set(KRON_ERR_ARGUMENT, "%s", wrong);
    x.u = (struct adapter_use){.te_strength = use->te_strength,
                               .unet_strength = use->unet_strength,
                               .blocks = use->blocks,
                               .steps = {use->start, use->stop, use->range_in_numbers != 0,
                                         use->n_curve > 0 ? use->curve : NULL, (int)use->n_curve,
                                         use->curve_in_numbers != 0},
                               .scale = use->scale};
    memcpy(x.region, use->region, sizeof x.region);
    return add_masked(l, &x, use->mask);
}

void use_to_public(const struct use *x, kron_adapter_use *out)
{
    const struct adapter_steps *s = &x->u.steps;

    *out = (kron_adapter_use){.adapter = x->adapter,
                              .te_strength = x->u.te_strength,
                              .unet_strength = x->u.unet_strength,
                              .blocks = x->u.blocks,
                              .start = s->start,
                              .stop = s->stop,
                              .range_in_numbers = s->in_numbers,
                              .curve = s->points,
                              .n_curve = (size_t)s->n_points,
                              .curve_in_numbers = s->points_in_numbers,
                              .scale = x->u.scale,
                              .mask = x->mask.pixels != NULL ? &x->mask : NULL};
    memcpy(out->region, x->region, sizeof out->region);
}

/* --- from tags --- */

/* A name may point into a sub-folder, never out of the folder. */
static bool name_is_safe(const char *name)
{
    if (name[0] == '\0' || name[0] == '/')
        return false;
    for (const char *p = name; p != NULL; p = strchr(p, '/')) {
        p += *p == '/';
        if (p[0] == '.' && p[1] == '.' && (p[2] == '/' || p[2] == '\0'))
            return false;
    }
    return true;
}

static kron_status no_file(const char *what, const char *name, const char *path)
{
    return err_set(KRON_ERR_IO, "the prompt names the %s '%s': there is no %s", what, name, path);
}

static kron_status set_path(struct str *path, const char *dir, const char *name,
                            const char *ending)
{
    path->len = 0;
    str_addf(path, "%s/%s%s", dir, name, ending);
    return path->status;
}

/* The path of a file that a tag names. An adapter's name may be without an ending. */
static kron_status path_of(const char *dir, const char *name, const char *what, bool is_adapter,
                           struct str *path)
{
    if (dir == NULL) {
        str_add(path, name);
        return path->status;
    }
    if (!name_is_safe(name))
        return err_set(KRON_ERR_ARGUMENT, "the prompt's %s name '%s' leads out of %s", what, name,
                       dir);
    KRON_TRY(set_path(path, dir, name, ""));
    if (!is_adapter || name[st_stem(name)] != '\0')
        return path_is_file(str_get(path)) ? KRON_OK : no_file(what, name, str_get(path));
    for (int i = 0; st_ending(i) != NULL; i++) {
        KRON_TRY(set_path(path, dir, name, st_ending(i)));
        if (path_is_file(str_get(path)))
            return KRON_OK;
    }
    KRON_TRY(set_path(path, dir, name, st_ending(0)));
    return no_file(what, name, str_get(path));
}

static kron_status open_named(const struct session *s, const char *dir, const char *name,
                              kron_adapter **out)
{
    struct str path = {0};
    kron_status status = path_of(dir, name, "adapter", true, &path);

    if (status == KRON_OK)
        status = cache_open(s->e->adapters, str_get(&path), out);
    str_free(&path);
    return status;
}

static kron_status load_mask(const char *dir, const char *name, kron_image *out)
{
    struct str path = {0};
    kron_status status = path_of(dir, name, "mask", false, &path);

    if (status == KRON_OK)
        status = image_load(out, str_get(&path), 1);
    str_free(&path);
    return status;
}

static kron_status copy_points(struct use_list *l, const struct prompt_adapter *tag,
                               struct adapter_steps *out)
{
    kron_step_point *p = arena_alloc(&l->mem, tag->n_points * sizeof *p);

    if (p == NULL)
        return l->mem.status;
    for (size_t i = 0; i < tag->n_points; i++)
        p[i] = (kron_step_point){(float)tag->points[i].at, (float)tag->points[i].factor};
    out->points = p;
    out->n_points = (int)tag->n_points;
    return KRON_OK;
}

/* All but the adapter and the mask. blocks: room for what lbw= says. */
static kron_status read_tag(struct use_list *l, const struct session *s,
                            const struct prompt_adapter *tag, float *blocks, struct use *x)
{
    x->u = (struct adapter_use){.te_strength = (float)tag->te_strength,
                                .unet_strength = (float)tag->unet_strength,
                                .steps = {.start = (float)tag->start,
                                          .stop = (float)tag->stop,
                                          .in_numbers = tag->in_numbers,
                                          .points_in_numbers = tag->points_in_numbers},
                                .scale = (float)tag->scale};
    for (int i = 0; i < 4; i++)
        x->region[i] = (float)tag->region[i];
    if (tag->n_points > 0)
        KRON_TRY(copy_points(l, tag, &x->u.steps));
    if (tag->blocks == NULL)
        return KRON_OK;
    x->u.blocks = blocks;
    kron_status status = session_read_blocks(s, tag->blocks, blocks);
    return status == KRON_OK ? status : err_prefix(status, "adapter '%s': lbw=", tag->name);
}

kron_status use_list_add_tag(struct use_list *l, const struct session *s,
                             const struct prompt_adapter *tag, const char *dir)
{
    float blocks[ADAPTER_BLOCKS];
    struct use x = {0};
    kron_image mask = {0};

    KRON_TRY(read_tag(l, s, tag, blocks, &x));
    if (tag->mask != NULL)
        KRON_TRY(load_mask(dir, tag->mask, &mask));
    kron_status status = open_named(s, dir, tag->name, &x.adapter);
    if (status == KRON_OK)
        status = add_masked(l, &x, tag->mask != NULL ? &mask : NULL);
    image_free(&mask);
    adapter_unref(&x.adapter);
    return status;
}

/* --- comparing --- */

static bool same_region(const struct delta_region *a, const struct delta_region *b)
{
    if (a == NULL || b == NULL)
        return a == b;
    return a->w == b->w && a->h == b->h &&
           memcmp(a->mask, b->mask, (size_t)a->w * (size_t)a->h * sizeof *a->mask) == 0;
}

bool use_lists_alike(const struct use_list *a, const struct use_list *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct use *x = &a->at[i], *y = &b->at[i];
        if (x->adapter != y->adapter || x->u.scale != y->u.scale ||
            adapter_steps_vary(&x->u.steps) != adapter_steps_vary(&y->u.steps) ||
            !same_region(x->u.region, y->u.region))
            return false;
    }
    return true;
}
