/* SPDX-License-Identifier: MIT
 * Tensors carried over: other names, another type, the same numbers. Knows parts, not families,
 * but for where a scale has to move. */
#include "convert/carry.h"
#include "adapter/family.h"
#include <math.h>
#include <string.h>

static bool is_factor(enum ap part)
{
    return part != AP_ALPHA && part != AP_SCALE && part != AP_SCALAR && part != AP_IA3_ON_INPUT &&
           part != AP_SPARSE_INDICES && part != AP_SPARSE_SIZE && part != AP_RESHAPE_WEIGHT;
}

/* The ending in the new naming; what it does not know keeps its own. */
static const char *ending(kron_naming naming, enum ap part, const char *own)
{
    bool diffusers = naming == KRON_NAMING_DIFFUSERS;

    if (naming == KRON_NAMING_KEEP)
        return own;
    switch (part) {
    case AP_LORA_UP:
        return diffusers ? ".lora_B.weight" : ".lora_up.weight";
    case AP_LORA_DOWN:
        return diffusers ? ".lora_A.weight" : ".lora_down.weight";
    case AP_LORA_BIAS:
        return diffusers ? ".lora_B.bias" : ".lora_up.bias";
    case AP_DORA_SCALE:
        return diffusers ? ".lora_magnitude_vector" : ".dora_scale";
    default:
        return own;
    }
}

static kron_status carry_tensor(const struct tensor *t, const char *prefix, const char *end,
                                enum dtype type, double factor, struct out_tensors *out)
{
    float *x;

    if (type == t->type && factor == 1) {
        struct str name = {0};
        str_addf(&name, "%s%s", prefix, end);
        kron_status status = name.status;
        if (status == KRON_OK)
            status = out_view(out, str_get(&name), t);
        str_free(&name);
        return status;
    }
    KRON_TRY(mem_floats(&x, tensor_elements(t), "a tensor"));
    tensor_decode(t, 0, tensor_elements(t), x);
    for (int64_t i = 0; i < tensor_elements(t) && factor != 1; i++)
        x[i] = (float)(x[i] * factor);
    kron_status status = out_numbers(out, prefix, end, type, t->n_dims, t->dim, x);
    mem_free(x);
    return status;
}

/* Where a module's scale goes. DIFFUSERS knows no alpha: a LoRA's goes into its up side. PEFT's
 * config stays behind, so what it says becomes an alpha or goes into a whole w1. */
struct moved {
    enum ap part; /* that is multiplied; AP_COUNT: none */
    double factor;
    bool drop_alpha, add_alpha;
    float alpha;
};

static struct moved move_scale(const struct adapter_file *f, const struct adapter_module *m,
                               kron_naming naming)
{
    const struct tensor *const *p = m->part;
    struct moved v = {.part = AP_COUNT, .factor = 1};
    unsigned lora = 1u << FAM_LORA | 1u << FAM_DORA | 1u << FAM_BIAS;
    bool said = p[AP_ALPHA] != NULL || p[AP_SCALE] != NULL || p[AP_SCALAR] != NULL;

    if (p[AP_LORA_UP] != NULL && p[AP_LORA_DOWN] != NULL && (module_families(m) & ~lora) == 0) {
        int64_t rank = p[AP_LORA_DOWN]->dim[0];
        double scale = module_scale(f, m, rank, 0);
        if (naming == KRON_NAMING_DIFFUSERS) {
            v = (struct moved){AP_LORA_UP, scale, true, false, 0};
        } else if (f->has_config && !said && scale != 1) {
            v.add_alpha = true;
            v.alpha = (float)(scale * (double)rank);
        }
    } else if (f->has_config && !said && p[AP_LOKR_W1] != NULL && p[AP_LOKR_W2] != NULL) {
        v.part = AP_LOKR_W1;
        v.factor = module_scale(f, m, 0, p[AP_LOKR_W1]->dim[1]);
    }
    return v;
}

kron_status carry_module(const struct adapter_file *f, int module, const char *prefix,
                         kron_naming naming, kron_type type, struct out_tensors *out)
{
    const struct adapter_module *m = &f->modules[module];
    struct moved moved = move_scale(f, m, naming);
    size_t own = strlen(m->prefix);

    for (int i = 0; i < AP_COUNT; i++) {
        const struct tensor *t = m->part[i];
        enum ap part = (enum ap)i;
        if (t == NULL || (moved.drop_alpha && !is_factor(part)))
            continue;
        bool factor = is_factor(part) && dtype_is_float(t->type);
        KRON_TRY(carry_tensor(t, prefix, ending(naming, part, t->name + own),
                              factor ? dtype_of(type, t->type) : t->type,
                              part == moved.part ? moved.factor : 1, out));
    }
    if (moved.add_alpha)
        KRON_TRY(out_numbers(out, prefix, ".alpha", DT_F32, 0, NULL, &moved.alpha));
    return KRON_OK;
}

kron_status carry_rest(const struct adapter_file *f, struct out_tensors *out)
{
    for (int64_t i = 0; i < st_count(f->st); i++)
        if (embedding_bundled(st_at(f->st, i)->name))
            KRON_TRY(out_view(out, st_at(f->st, i)->name, st_at(f->st, i)));
    for (int i = 0; i < f->n_leftovers; i++)
        if (!embedding_bundled(f->leftovers[i].t->name))
            KRON_TRY(out_view(out, f->leftovers[i].t->name, f->leftovers[i].t));
    return KRON_OK;
}
