/* SPDX-License-Identifier: MIT
 * layers: one adapted layer a case, every family and form, on every route. */
#include "golden.h"
#include "../unit/layer_run.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct one_layer {
    struct layer layer;
    struct layer *list[1];
    struct layer_table table;
    struct adapter_names *names;
    struct adapter_file *files[8];
    struct adapter_set *set;
};

static bool starts_case(const char *name, const char *prefix)
{
    return str_starts(name, prefix) && strlen(name) > strlen(prefix);
}

/* The adapter's tensors as a file of its own, under the layer's name unless they bring one. */
static kron_status open_parts(const struct st_file *f, const char *name, int index,
                              const char *config, struct adapter_file **out)
{
    char prefix[128], path[] = "/tmp/kron-golden-XXXXXX";
    struct tensor parts[16];
    struct arena mem = {0};
    int64_t n = 0;
    int fd = mkstemp(path);

    snprintf(prefix, sizeof prefix, "%s/a%d/", name, index);
    for (int64_t i = 0; i < st_count(f) && n < 16; i++) {
        const struct tensor *t = st_at(f, i);
        if (!starts_case(t->name, prefix))
            continue;
        const char *part = t->name + strlen(prefix);
        parts[n] = *t;
        parts[n++].name = str_starts(part, "base_model.")
                              ? part
                              : arena_printf(&mem, "lora_unet_m.%s", part);
    }
    if (fd < 0)
        return err_set(KRON_ERR_IO, "%s: cannot create", path);
    close(fd);
    kron_status status = st_write(path, parts, n, NULL, 0);
    char *bytes = NULL;
    size_t n_bytes;
    if (status == KRON_OK)
        status = file_read(&bytes, &n_bytes, path, (size_t)1 << 30);
    unlink(path);
    arena_free(&mem);
    /* The copy lives as long as the program: adapter files are views of it. */
    return status == KRON_OK ? adapter_open_memory(out, bytes, n_bytes, name, config) : status;
}

static kron_status open_case(struct one_layer *o, const struct st_file *f, const json_t *row,
                             struct adapter_use *uses, int *n)
{
    const json_t *list = json_object_get(row, "adapters"), *a;
    char *config = json_dumps(json_object_get(row, "adapter_config"), JSON_ENCODE_ANY);
    size_t i;
    kron_status status = KRON_OK;

    *n = 0;
    json_array_foreach((json_t *)(uintptr_t)list, i, a)
    {
        if (status != KRON_OK || i >= 8)
            break;
        status = open_parts(f, text_of(row, "case"), (int)i,
                            json_object_get(row, "adapter_config") ? config : NULL, &o->files[i]);
        uses[i] = (struct adapter_use){o->files[i], 0, (float)number_of(a, "strength")};
        (*n)++;
    }
    free(config);
    return status;
}

static void make_layer(struct one_layer *o, const struct st_file *f, const json_t *row)
{
    const char *name = text_of(row, "case");
    const struct tensor *w = find(f, name, "W"), *b = find(f, name, "bias");

    memset(o, 0, sizeof *o);
    o->layer = (struct layer){.id = 0, .part = PART_UNET,
                              .kind = w->n_dims == 4 ? LAYER_CONV : LAYER_LINEAR,
                              .name = "m", .native = "m", .out = w->dim[0],
                              .in = w->n_dims > 1 ? w->dim[1] : 1,
                              .kh = w->n_dims == 4 ? (int)w->dim[2] : 1,
                              .kw = w->n_dims == 4 ? (int)w->dim[3] : 1, .is_conv = w->n_dims == 4,
                              .weight = *w};
    if (strcmp(text_of(row, "type"), "norm") == 0)
        o->layer.kind = LAYER_NORM;
    if (b != NULL)
        o->layer.bias = *b;
    o->list[0] = &o->layer;
    o->table = (struct layer_table){.at = o->list, .n = 1};
}

/* x as the graph takes it, shape [n, h, w, c]; the reference has [2, 5, in] or NCHW. */
static float *input(const struct st_file *f, const char *name, const char *part,
                    struct gr_shape *shape)
{
    const struct tensor *t = find(f, name, part);
    int64_t dim[4];

    if (t->n_dims == 4) {
        float *x = get_nhwc(f, name, part, dim);
        *shape = (struct gr_shape){dim[0], dim[2], dim[3], dim[1]};
        return x;
    }
    *shape = (struct gr_shape){t->dim[0], 1, t->dim[1], t->dim[2]};
    return get(f, name, part, NULL);
}

static void check_routes(struct golden *g, struct be_device *d, const struct one_layer *o,
                         const struct st_file *f, const json_t *row)
{
    static const char *const names[] = {"weight", "activation", "merged"};
    const char *name = text_of(row, "case");
    struct gr_shape xs, ys;
    float *x = input(f, name, "x", &xs), *want = input(f, name, "y", &ys);
    float *want0 = input(f, name, "y0", &ys);
    int64_t n = gr_elements(ys);
    float *got = floats(n);
    const struct delta_set *set = o->set ? adapter_set_deltas(o->set) : NULL;
    float strengths[8 * ADAPTER_SLOTS];
    struct layer_call call = {.x = xs, .stride = (int)number_of(row, "stride"),
                              .groups = (int)number_of(row, "groups"),
                              .eps = (float)number_of(row, "eps")};
    char label[160];

    call.stride = call.stride > 0 ? call.stride : 1;

    if (o->set != NULL)
        adapter_set_get_strengths(o->set, strengths);
    for (int r = 0; r < 3; r++) {
        call.route = (enum gr_route)r;
        snprintf(label, sizeof label, "%s/%s", name, names[r]);
        if (layer_run(d, &o->table, &o->layer, set, strengths, &call, x, got) != KRON_OK) {
            broken(g, label);
        } else {
            double change = rel_change(got, want0, want, want0, n);
            result(g, label, fmax(rel(got, want, n), change / 10), BOUND_LAYER);
        }
    }
    mem_free(x);
    mem_free(want);
    mem_free(want0);
    mem_free(got);
}

static void check_case(struct golden *g, struct be_device *d, const struct st_file *f,
                       const json_t *row)
{
    const char *name = text_of(row, "case");
    struct one_layer o;
    struct adapter_use uses[8];
    int n = 0;
    kron_status status;

    make_layer(&o, f, row);
    status = adapter_names_create(&o.names, &o.table);
    if (status == KRON_OK)
        status = open_case(&o, f, row, uses, &n);
    if (status == KRON_OK)
        status = adapter_bind(&o.set, uses, n, o.names, true);
    if (status == KRON_ERR_UNSUPPORTED)
        skip(g, name, kron_error_detail());
    else if (status != KRON_OK)
        broken(g, name);
    else
        check_routes(g, d, &o, f, row);
    adapter_set_free(&o.set);
    for (int i = 0; i < 8; i++)
        adapter_close(&o.files[i]);
    adapter_names_free(&o.names);
}

void golden_layers(struct golden *g)
{
    json_t *man = load_json(g, "layers.json"), *row;
    struct be_device *d;
    size_t i;

    if (man == NULL || !wanted(g, "layers"))
        return;
    printf("# layers\n");
    if (be_open(g->backend, 0, &d) != KRON_OK) {
        broken(g, "layers");
        return;
    }
    struct st_file *f = load_tensors(g, "layers.safetensors");
    json_array_foreach(man, i, row)
        check_case(g, d, f, row);
    st_close(&f);
    be_close(&d);
    json_decref(man);
}
