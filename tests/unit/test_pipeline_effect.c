/* SPDX-License-Identifier: MIT
 * The same strength has the same effect at every type of the base: what an adapter changes in one
 * call of the UNet, held against what it changes on f16. */
#include "convert/convert.h"
#include "pipeline/session.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REFERENCE KRON_SHARED_DIR "/reference/"
#define MODELS KRON_SOURCE_DIR "/models/"

enum { SIDE = 8, N = SIDE * SIDE * 4 };

static void fill(float *x, int64_t n, uint32_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        float sum = 0;
        for (int k = 0; k < 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            sum += (float)(seed >> 8) / 8388608.0f - 1;
        }
        x[i] = sum * 0.8660254f; /* about a normal distribution */
    }
}

static void call(struct session *s, float *out)
{
    const struct unet *u = &s->e->model.unet;
    struct condition c = {.tokens = 77};
    struct denoise d;
    float x[N];

    fill(x, N, 3);
    assert_int_equal(mem_floats(&c.context, 77 * u->context_width, "text"), KRON_OK);
    assert_int_equal(mem_floats(&c.pooled, u->pooled_width + 1, "text"), KRON_OK);
    fill(c.context, 77 * u->context_width, 4);
    fill(c.pooled, u->pooled_width, 5);
    assert_int_equal(denoise_init(&d, s, &c, NULL, 1, SIDE, SIDE), KRON_OK);
    if (denoise_raw(&d, x, 500, out) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    denoise_fini(&d);
    condition_free(&c);
}

/* The UNet's weights as f32, once a run has made them: the numbers of their type. */
static void weights_as_f32(struct engine *e, const kron_session_params *how, struct arena *mem)
{
    struct session *s;
    float ignored[N];

    assert_int_equal(session_create(&s, e, how), KRON_OK);
    call(s, ignored);
    session_free(&s);
    for (int i = 0; i < e->model.layers.n; i++) {
        struct tensor *w = &e->model.layers.at[i]->weight;
        int64_t n = tensor_elements(w);
        if (e->model.layers.at[i]->part != PART_UNET || w->data == NULL)
            continue;
        float *f32 = arena_alloc(mem, (size_t)n * sizeof *f32);
        assert_non_null(f32);
        tensor_decode(w, 0, n, f32);
        w->data = f32;
        w->type = DT_F32;
        w->bytes = (size_t)n * sizeof *f32;
        w->scale = NULL;
    }
}

/* out[N]: with minus without the adapter. as_f32: the base is the numbers of the type as f32. */
static void effect(const char *path, const char *adapter, kron_type type, bool as_f32,
                   kron_apply apply, float *out)
{
    kron_model_params p = {.model = path, .n_threads = 1, .type = type};
    kron_session_params how = {.apply = apply};
    kron_adapter *a;
    struct engine e;
    struct session *s;
    struct arena mem = {0};
    float plain[N];

    if (engine_open(&e, &p) != KRON_OK || kron_adapter_open(&a, adapter) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    if (as_f32)
        weights_as_f32(&e, &how, &mem);
    assert_int_equal(session_create(&s, &e, &how), KRON_OK);
    call(s, plain);
    kron_adapter_use use = {a, 1, 1};
    if (session_set_adapters(s, &use, 1) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    session_fill_strengths(s, 0, 1);
    call(s, out);
    for (int i = 0; i < N; i++)
        out[i] -= plain[i];
    session_free(&s);
    kron_adapter_close(&a);
    engine_close(&e);
    arena_free(&mem);
}

/* |x - y| / |y|, and |x| / |y|. */
static double distance(const float *x, const float *y, double *size)
{
    double d = 0, xx = 0, yy = 0;

    for (int i = 0; i < N; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        xx += (double)x[i] * x[i];
        yy += (double)y[i] * y[i];
    }
    *size = sqrt(xx / yy);
    return sqrt(d / yy);
}

/* Relative error of 4096 normal numbers of the size of weights in a type. */
static double type_error(kron_type type)
{
    static float x[4096], y[4096];
    static char bytes[4096 * 4];
    enum dtype t = dtype_of(type, DT_F16);
    struct tensor back = {.data = bytes, .type = t};
    double d = 0, all = 0;

    fill(x, 4096, 9);
    for (int i = 0; i < 4096; i++)
        x[i] *= 0.05f;
    tensor_encode(t, x, 4096, bytes);
    tensor_decode(&back, 0, 4096, y);
    for (int i = 0; i < 4096; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        all += (double)x[i] * x[i];
    }
    return sqrt(d / all);
}

/* Against f16: what an adapter changes of a layer is the same to f32's roundings at every type, but
 * the network around it has weights that are off by the type's error e, which adds up over the
 * layers that a change passes. Measured are 1 to 3.5 e for blocks, which only matrices get, up to
 * 8.3 e for types that all layers get; 1.5 e for the size, which an adapter that fades or is
 * rounded away with the base would lose. */
enum { DISTANCE = 10, SIZE = 2 };

static void check_f16(const char *path, const char *adapter, kron_type type, const float *want)
{
    double size, e = type_error(type);
    const char *name = strrchr(adapter, '/') + 1;
    float got[N];

    effect(path, adapter, type, false, KRON_APPLY_AT_RUNTIME, got);
    double d = distance(got, want, &size);
    print_message("%-38s type %2d (e = %.4f): distance %.4f = %.1f e, size 1 %+.4f = %+.2f e\n",
                  name, (int)type, e, d, d / e, size - 1, (size - 1) / e);
    if (d > DISTANCE * e || fabs(size - 1) > SIZE * e)
        fail_msg("%s on type %d: distance %.4f, size %.4f, with an error of weights of %.4f", name,
                 (int)type, d, size, e);
}

static const kron_type types[] = {
    KRON_TYPE_BF16, KRON_TYPE_Q8_0,   KRON_TYPE_Q5_1,  KRON_TYPE_Q5_0,    KRON_TYPE_Q4_1,
    KRON_TYPE_Q4_0, KRON_TYPE_IQ4_NL, KRON_TYPE_MXFP4, KRON_TYPE_F8_E4M3, KRON_TYPE_F8_E5M2,
};
enum { N_TYPES = sizeof types / sizeof *types };

static void effects_are_those_on_f16(void **state)
{
    static const char *const adapters[] = {
        REFERENCE "adapter_sd15_lokr_full.safetensors", REFERENCE "adapter_sd15_lora.safetensors",
        REFERENCE "adapter_sd15_loha_tucker.safetensors",
    };
    const char *path = REFERENCE "tiny_sd15.safetensors";
    float want[N];

    (void)state;
    if (!path_is_file(path))
        skip();
    for (size_t i = 0; i < sizeof adapters / sizeof *adapters; i++) {
        effect(path, adapters[i], KRON_TYPE_F16, false, KRON_APPLY_AT_RUNTIME, want);
        for (size_t k = 0; k < N_TYPES; k++)
            check_f16(path, adapters[i], types[k], want);
    }
}

/* Types of 256 numbers a block, which tiny models have no rows for. */
static void effects_on_the_shipped_model(void **state)
{
    static const kron_type more[] = {KRON_TYPE_Q6_K, KRON_TYPE_Q5_K, KRON_TYPE_Q4_K,
                                     KRON_TYPE_Q3_K, KRON_TYPE_Q2_K, KRON_TYPE_IQ4_XS,
                                     KRON_TYPE_Q4_0};
    const char *path = MODELS "emoji-sd.safetensors", *neon = MODELS "lokr-neon.safetensors";
    float want[N];

    (void)state;
    effect(path, neon, KRON_TYPE_KEEP, false, KRON_APPLY_AT_RUNTIME, want);
    for (size_t k = 0; k < sizeof more / sizeof *more; k++)
        check_f16(path, neon, more[k], want);
}

/* Against the same numbers stored as f32 nothing but roundings may differ, whatever the route and
 * the family; the reference's tolerance of a network's output is 1e-4. */
static void a_type_is_nothing_but_its_numbers(void **state)
{
    static const char *const pairs[][2] = {
        {"tiny_sd15", "adapter_sd15_lokr_full"}, {"tiny_sdxl", "adapter_sdxl_lokr_low"},
        {"tiny_sdxl", "adapter_sdxl_lokr_dora_out"}, {"tiny_sdxl", "adapter_sdxl_ia3"},
        {"tiny_sdxl", "adapter_sdxl_oft"}, {"tiny_sd2", "adapter_sd2_locon_mid"},
    };
    static const kron_apply ways[] = {KRON_APPLY_AT_RUNTIME, KRON_APPLY_IMMEDIATELY};
    char model[300], adapter[300];
    float want[N], got[N];
    double size, worst = 0;

    (void)state;
    if (!path_is_file(REFERENCE "tiny_sd15.safetensors"))
        skip();
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (size_t k = 0; k < N_TYPES; k++) {
            snprintf(model, sizeof model, REFERENCE "%s.safetensors", pairs[i][0]);
            snprintf(adapter, sizeof adapter, REFERENCE "%s.safetensors", pairs[i][1]);
            effect(model, adapter, types[k], true, KRON_APPLY_AT_RUNTIME, want);
            effect(model, adapter, types[k], false, ways[k % 2], got);
            double d = distance(got, want, &size);
            worst = d > worst ? d : worst;
            if (!(d < 1e-4))
                fail_msg("%s on type %d, way %d: distance %g from the same numbers as f32",
                         pairs[i][1], (int)types[k], (int)ways[k % 2], d);
        }
    print_message("the same numbers as f32: distance at most %.2g\n", worst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(effects_are_those_on_f16),
        cmocka_unit_test(effects_on_the_shipped_model),
        cmocka_unit_test(a_type_is_nothing_but_its_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
