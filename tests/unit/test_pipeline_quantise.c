/* SPDX-License-Identifier: MIT
 * The shipped model in other types: converted to files, and when it is opened. */
#include "file/file.h"
#include "session_fixture.h"
#include "temp_dir.h"
#ifdef __GLIBC__
#include <malloc.h>
#endif

#define SHIPPED MODELS "/emoji-sd.safetensors"

struct seen {
    int made, mapped, not_kept, merged;
};

static void on_log(kron_log_level level, const char *line, void *user)
{
    struct seen *s = user;

    (void)level;
    s->made += strstr(line, "weights of another type") != NULL && strstr(line, "made of") != NULL;
    s->mapped += strstr(line, "weights of another type") != NULL && strstr(line, ".gguf") != NULL;
    s->not_kept += strstr(line, "are not kept") != NULL;
    s->merged += strstr(line, ": route merged") != NULL;
}

/* Merged: routes of AUTO follow measured rates, and each rounds in its own way. */
static kron_image draw_opened(const kron_model_params *p, const char *prompt)
{
    kron_model *own, *before = model;
    kron_job j = small_job();

    if (kron_model_open(&own, p) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    model = own;
    kron_session *s = new_session(KRON_APPLY_IMMEDIATELY);
    j.prompt = prompt;
    kron_image image = draw(s, &j);
    kron_session_free(&s);
    kron_model_close(&own);
    model = before;
    return image;
}

static void convert(const kron_convert_params *p)
{
    if (kron_convert(p, NULL) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

static int64_t size_of(const char *path)
{
    return path_identity(path).bytes;
}

#define PROMPT "a cat face <lora:lokr-neon:0.8>"

/* From f16 to a q8_0 GGUF and back to f16 safetensors. Measured: 40.8 dB without, 42.7 dB
 * with the adapter; the bound leaves 3 dB for the roundings of other processors. */
static void a_converted_file_draws_the_same(void **state)
{
    kron_convert_params c = {.model = SHIPPED, .output = in_dir("q8.gguf"),
                             .type = KRON_TYPE_Q8_0};
    char q8[4096];
    snprintf(q8, sizeof q8, "%s", in_dir("q8.gguf")); /* of in_dir()'s paths only two stay */
    kron_model_params p = {.model = q8, .n_threads = 1};
    kron_model_params plain_file = {.model = SHIPPED, .n_threads = 1};

    (void)state;
    convert(&c);
    assert_true(size_of(in_dir("q8.gguf")) < size_of(SHIPPED) * 9 / 10);
    kron_image image = draw_opened(&p, "a cat face");
    print_message("q8_0: PSNR %.1f dB\n", psnr(&image, &plain));
    expect_close(&image, &plain, 38, "q8_0");
    kron_image_free(&image);
    image = draw_opened(&p, PROMPT);
    kron_image want = draw_opened(&plain_file, PROMPT);
    print_message("q8_0, adapter: PSNR %.1f dB\n", psnr(&image, &want));
    expect_close(&image, &want, 38, "q8_0 with an adapter");
    expect_apart(&image, &plain, 30, "the adapter acts");
    kron_image_free(&want);

    c = (kron_convert_params){.model = p.model, .output = in_dir("back.safetensors"),
                              .type = KRON_TYPE_F16};
    convert(&c);
    kron_model_params back = {.model = in_dir("back.safetensors"), .n_threads = 1};
    want = draw_opened(&back, PROMPT);
    expect_close(&image, &want, 50, "q8_0's numbers as f16"); /* measured: 60 dB and above */
    kron_image_free(&want);
    kron_image_free(&image);
}

/* Opening with a type gives the numbers that converting gives, so the same picture. */
static void a_type_when_opening_is_that_of_a_file(void **state)
{
    static const char rules[] = "attn2\\.to_k=q5_1,^first_stage_model=f32";
    kron_convert_params c = {.model = SHIPPED, .output = in_dir("rules.gguf"),
                             .type = KRON_TYPE_Q4_0, .type_rules = rules};
    kron_model_params file = {.model = in_dir("rules.gguf"), .n_threads = 1};
    kron_model_params opened = {.model = SHIPPED, .n_threads = 1, .type = KRON_TYPE_Q4_0,
                                .type_rules = rules};

    (void)state;
    convert(&c);
    kron_image a = draw_opened(&file, PROMPT), b = draw_opened(&opened, PROMPT);
    assert_true(same(&a, &b));
    kron_image_free(&a);
    kron_image_free(&b);
}

static void a_cache_is_mapped_the_next_time(void **state)
{
    kron_model_params p = {.model = SHIPPED, .n_threads = 1, .type = KRON_TYPE_Q8_0,
                           .quant_cache = dir};
    struct seen seen = {0};

    (void)state;
    kron_log_set(on_log, &seen);
    int before = temp_dir_count(dir);
    kron_image a = draw_opened(&p, PROMPT);
    assert_true(seen.made == 1 && seen.mapped == 0);
    assert_int_equal(temp_dir_count(dir), before + 1);
    kron_image b = draw_opened(&p, PROMPT);
    assert_true(seen.made == 1 && seen.mapped == 1 && same(&a, &b));
    kron_image_free(&b);
    p.type_rules = "nothing=f32"; /* another key, another file */
    b = draw_opened(&p, PROMPT);
    assert_true(seen.made == 2 && same(&a, &b));
    assert_int_equal(temp_dir_count(dir), before + 2);
    kron_image_free(&b);
    kron_image_free(&a);
    kron_log_set(NULL, NULL);
    kron_model *none;
    p.quant_cache = "/nowhere";
    assert_int_equal(kron_model_open(&none, &p), KRON_ERR_IO);
    p = (kron_model_params){.model = SHIPPED, .type_rules = "a=b"};
    assert_int_equal(kron_model_open(&none, &p), KRON_ERR_ARGUMENT);
}

static void draw_and_drop(const kron_model_params *p)
{
    kron_image image = draw_opened(p, "a cat face");

    kron_image_free(&image);
}

/* A cached file that is cut short is made again. */
static void a_damaged_cache_is_made_anew(void **state)
{
    char own[4096];
    kron_model_params p = {.model = SHIPPED, .n_threads = 1, .type_rules = "attn1=q4_1",
                           .quant_cache = own};
    struct seen seen = {0};

    (void)state;
    temp_dir_make(own, sizeof own);
    kron_log_set(on_log, &seen);
    draw_and_drop(&p);
    DIR *d = opendir(own);
    char path[8192] = "";
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (strstr(e->d_name, ".gguf") != NULL)
            snprintf(path, sizeof path, "%s/%s", own, e->d_name);
    closedir(d);
    assert_int_equal(truncate(path, size_of(path) / 2), 0);
    draw_and_drop(&p);
    draw_and_drop(&p);
    assert_true(seen.made == 2 && seen.mapped == 1);
    kron_log_set(NULL, NULL);
    temp_dir_remove(own);
}

/* Opening converts nothing; what a picture to picture needs besides is added to what is kept. */
static void weights_are_made_when_first_used(void **state)
{
    char own[4096];
    kron_model_params p = {.model = SHIPPED, .n_threads = 1, .type = KRON_TYPE_F32,
                           .quant_cache = own};
    struct seen seen = {0};
    kron_job j = small_job();
    kron_model *m, *before = model;

    (void)state;
    temp_dir_make(own, sizeof own);
    kron_log_set(on_log, &seen);
    assert_int_equal(kron_model_open(&m, &p), KRON_OK);
    kron_model_close(&m);
    assert_true(seen.made == 0 && temp_dir_count(own) == 0);
    draw_and_drop(&p);
    assert_true(seen.made == 1 && seen.mapped == 0 && temp_dir_count(own) == 1);
    j.init_image = &plain; /* the VAE's encoder */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(kron_model_open(&m, &p), KRON_OK);
        model = m;
        kron_session *s = new_session(KRON_APPLY_AUTO);
        kron_image image = draw(s, &j);
        kron_image_free(&image);
        kron_session_free(&s);
        kron_model_close(&m);
        assert_true(seen.made == 2 && seen.mapped == 1 + i && temp_dir_count(own) == 1);
    }
    model = before;
    kron_log_set(NULL, NULL);
    temp_dir_remove(own);
}

static void *draw_first(void *user)
{
    kron_job j = small_job();
    kron_session *s = new_session(KRON_APPLY_AUTO);

    *(kron_image *)user = draw(s, &j);
    kron_session_free(&s);
    return NULL;
}

/* Whoever comes first makes a layer, the others wait for it. */
static void sessions_share_what_is_made(void **state)
{
    kron_model_params p = {.model = SHIPPED, .n_threads = 1, .type = KRON_TYPE_Q8_0};
    kron_image want = draw_opened(&p, "a cat face"), image[3];
    kron_model *before = model;
    pthread_t thread[3];

    (void)state;
    assert_int_equal(kron_model_open(&model, &p), KRON_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, draw_first, &image[i]), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(thread[i], NULL), 0);
        assert_true(same(&image[i], &want));
        kron_image_free(&image[i]);
    }
    kron_image_free(&want);
    kron_model_close(&model);
    model = before;
}

/* Parts of several files become one: the VAE of another file, everything else of the first. */
static void parts_become_one_file(void **state)
{
    kron_convert_params c = {.model = SHIPPED, .vae = SHIPPED, .output = in_dir("parts.gguf")};
    kron_model_params p = {.model = in_dir("parts.gguf"), .n_threads = 1};

    (void)state;
    convert(&c);
    kron_image image = draw_opened(&p, "a cat face");
    assert_true(same(&image, &plain));
    kron_image_free(&image);
}

/* --- stopping --- */

static int stop_half_way(uint64_t done, uint64_t all, void *user)
{
    *(int *)user += 1;
    return done > all / 2;
}

static void a_stopped_conversion_leaves_nothing(void **state)
{
    int calls = 0;
    kron_convert_params c = {.model = SHIPPED, .output = in_dir("stop.gguf"),
                             .type = KRON_TYPE_Q4_0, .progress = stop_half_way,
                             .progress_user = &calls};

    (void)state;
    assert_int_equal(file_write(in_dir("stop.gguf"), "old", 3), KRON_OK);
    int before = temp_dir_count(dir);
    assert_int_equal(kron_convert(&c, NULL), KRON_ERR_CANCELLED);
    assert_true(calls > 10);
    assert_int_equal(temp_dir_count(dir), before);
    assert_int_equal(size_of(in_dir("stop.gguf")), 3);
    c.progress = NULL;
    convert(&c);
    assert_true(size_of(in_dir("stop.gguf")) > 3);
}

static void formats_say_what_they_cannot_hold(void **state)
{
    kron_convert_params c = {.model = SHIPPED, .output = in_dir("no.safetensors"),
                             .type = KRON_TYPE_Q8_0};

    (void)state;
    assert_int_equal(kron_convert(&c, NULL), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "safetensors has no type q8_0"));
    c.output = in_dir("no.gguf");
    c.type = KRON_TYPE_F8_E4M3;
    assert_int_equal(kron_convert(&c, NULL), KRON_ERR_UNSUPPORTED);
    c.output = in_dir("no.txt");
    assert_int_equal(kron_convert(&c, NULL), KRON_ERR_ARGUMENT);
    assert_false(path_is_file(in_dir("no.safetensors")) || path_is_file(in_dir("no.gguf")));
}

/* --- memory --- */

static int64_t anonymous(void)
{
#ifdef __SANITIZE_ADDRESS__
    return -1; /* its own memory grows with ours */
#endif
    char line[256];
    long kb = -1;
#ifdef __GLIBC__
    malloc_trim(0); /* what earlier tests freed is not to be taken for memory at hand */
#endif
    FILE *f = fopen("/proc/self/status", "r");

    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "RssAnon: %ld", &kb) == 1)
            break;
    if (f != NULL)
        fclose(f);
    return (int64_t)kb * 1024;
}

struct cost {
    int64_t grown, buffers; /* bytes: anonymous memory, and compute buffers, which are part of it */
    int merged;
};

/* What one picture with two adapters takes. */
static struct cost cost_of(const kron_model_params *p, kron_apply apply)
{
    struct seen seen = {0};
    kron_model *m, *before = model;
    kron_job j = small_job();
    int64_t start = anonymous();

    j.prompt = PROMPT "<lora:lora-sketch:0.5>";
    assert_int_equal(kron_model_open(&m, p), KRON_OK);
    model = m;
    kron_log_set(on_log, &seen);
    kron_session *s = new_session(apply);
    kron_image image = draw(s, &j);
    kron_log_set(NULL, NULL);
    kron_buffers b = kron_session_buffers(s);
    struct cost c = {anonymous() - start, (int64_t)(b.text_encoder + b.unet + b.vae), seen.merged};
    kron_image_free(&image);
    kron_session_free(&s);
    kron_model_close(&m);
    model = before;
    return c;
}

/* Drawing with blocks takes the compute buffers and little else: 27 M weights as f32 would be
 * 108 MB, those of the text encoder alone 40. On f16 layers of this size `auto` does merge. */
static void nothing_is_expanded(void **state)
{
    static const char *const types[] = {"q8_0", "q4_K", "f8_e4m3"};
    char path[4096], rules[64];
    kron_convert_params c = {.model = SHIPPED, .output = path, .type_rules = rules};
    kron_model_params p = {.model = path, .n_threads = 1};

    (void)state;
    if (anonymous() < 0)
        skip(); /* a kernel that does not tell */
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *name = i == 2 ? "memory.safetensors" : "memory.gguf";
        snprintf(path, sizeof path, "%s", in_dir(name));
        snprintf(rules, sizeof rules, "token_embedding=%s,ff|attn|mlp=%s", types[i], types[i]);
        convert(&c);
        struct cost auto_ = cost_of(&p, KRON_APPLY_AUTO);
        print_message("%s: %.1f MB more, %.1f MB of them compute buffers\n", types[i],
                      (double)auto_.grown / 1e6, (double)auto_.buffers / 1e6);
        assert_int_equal(auto_.merged, 0);
        assert_true(auto_.grown < auto_.buffers + (16 << 20));
        if (i == 0)
            assert_true(cost_of(&p, KRON_APPLY_IMMEDIATELY).merged > 100); /* who says so gets it */
    }
    p.model = SHIPPED;
    assert_true(cost_of(&p, KRON_APPLY_AUTO).merged > 0);
}

/* As ComfyUI's tools write them: every matrix that is whole blocks of 256, though its rows of 64 or
 * so are not, in q4_K; and the numbers that this gives, as f32. */
static int write_spanning(const char *blocks, const char *numbers)
{
    struct tensor *t[2];
    struct arena mem = {0};
    struct st_file *f;
    int n_blocks = 0;

    assert_int_equal(st_open(&f, SHIPPED), KRON_OK);
    int64_t n = st_count(f);
    for (int k = 0; k < 2; k++)
        t[k] = arena_alloc(&mem, (size_t)n * sizeof **t);
    for (int64_t i = 0; i < n; i++) {
        t[0][i] = t[1][i] = *st_at(f, i);
        int64_t all = tensor_elements(&t[0][i]);
        if (t[0][i].n_dims != 2 || all % 256 != 0 || t[0][i].dim[1] % 256 == 0)
            continue;
        float *x = arena_alloc(&mem, (size_t)all * sizeof *x);
        t[0][i].bytes = dtype_bytes(DT_Q4_K, all);
        void *q = arena_alloc(&mem, t[0][i].bytes);
        assert_int_equal(mem.status, KRON_OK);
        tensor_decode(&t[0][i], 0, all, x);
        tensor_encode(DT_Q4_K, x, all, q);
        t[0][i].type = DT_Q4_K;
        t[0][i].data = q;
        tensor_decode(&t[0][i], 0, all, x);
        t[1][i].type = DT_F32;
        t[1][i].data = x;
        t[1][i].bytes = (size_t)all * sizeof *x;
        n_blocks++;
    }
    assert_int_equal(gguf_write(blocks, t[0], n, NULL, 0), KRON_OK);
    assert_int_equal(st_write(numbers, t[1], n, NULL, 0), KRON_OK);
    st_close(&f);
    arena_free(&mem);
    return n_blocks;
}

static double distance(const struct tensor *a, const struct tensor *b)
{
    enum { SOME = 256 };
    int64_t n = tensor_elements(a);
    double sum = 0, all = 0;
    float x[SOME], y[SOME];

    for (int64_t at = 0; at < n; at += SOME) {
        int64_t m = n - at < SOME ? n - at : SOME;
        tensor_decode(a, at, m, x);
        tensor_decode(b, at, m, y);
        for (int64_t i = 0; i < m; i++) {
            sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
            all += (double)y[i] * y[i];
        }
    }
    return sqrt(sum / all);
}

/* With an adapter baked in each tensor keeps its type, and is what f32 holds but for the rounding
 * of blocks: 7 % for q4_K. */
static void expect_baked(const char *path)
{
    kron_adapter_source source = {MODELS "/lokr-neon.safetensors", 0.8f, 0.8f};
    kron_convert_params c = {.model = path, .output = in_dir("exact.safetensors"),
                             .adapters = &source, .n_adapters = 1, .type = KRON_TYPE_F32};
    struct st_file *from, *exact, *baked;

    convert(&c);
    assert_int_equal(st_open(&exact, c.output), KRON_OK);
    c.output = in_dir("baked.gguf");
    c.type = KRON_TYPE_KEEP;
    convert(&c);
    assert_int_equal(st_open(&from, path), KRON_OK);
    assert_int_equal(st_open(&baked, c.output), KRON_OK);
    for (int64_t i = 0; i < st_count(from); i++) {
        const struct tensor *t = st_at(from, i), *u = st_find(baked, t->name);
        assert_true(u != NULL && u->type == t->type && u->n_dims == t->n_dims);
        assert_memory_equal(u->dim, t->dim, sizeof t->dim);
        if (t->type == DT_Q4_K)
            assert_true(distance(u, st_find(exact, t->name)) < 0.085);
    }
    st_close(&from);
    st_close(&exact);
    st_close(&baked);
}

static void blocks_that_span_rows_stay_in_the_file(void **state)
{
    char blocks[4096], numbers[4096];
    kron_model_params p = {.model = blocks, .n_threads = 1};

    (void)state;
    snprintf(blocks, sizeof blocks, "%s", in_dir("span.gguf"));
    snprintf(numbers, sizeof numbers, "%s", in_dir("span.safetensors"));
    assert_true(write_spanning(blocks, numbers) > 20);
    struct cost cost = cost_of(&p, KRON_APPLY_AT_RUNTIME);
    if (cost.grown > 0)
        assert_true(cost.grown < cost.buffers + (16 << 20));
    kron_image got = draw_opened(&p, PROMPT);
    p.model = numbers;
    kron_image want = draw_opened(&p, PROMPT);
    expect_close(&got, &want, 60, "q4_K across rows"); /* the same numbers */
    kron_image_free(&want);
    kron_image_free(&got);
    expect_baked(blocks);
}

/* --- importance --- */

static void importance_is_collected_and_used(void **state)
{
    kron_model_params p = {.model = SHIPPED, .n_threads = 1, .collect_importance = 1};
    kron_model_params q = {.model = SHIPPED, .n_threads = 1, .type = KRON_TYPE_Q4_0};
    kron_model *m, *before = model;
    kron_job j = small_job();

    (void)state;
    assert_int_equal(kron_model_save_importance(model, in_dir("i.gguf")), KRON_ERR_ARGUMENT);
    assert_int_equal(kron_model_open(&m, &p), KRON_OK);
    model = m;
    kron_session *s = new_session(KRON_APPLY_AUTO);
    expect_picture(s, &j, &plain); /* looking on changes nothing */
    assert_int_equal(kron_model_save_importance(m, in_dir("i.gguf")), KRON_OK);
    kron_session_free(&s);
    kron_model_close(&m);
    model = before;

    kron_image without = draw_opened(&q, "a cat face");
    q.importance = in_dir("i.gguf");
    kron_image with = draw_opened(&q, "a cat face");
    print_message("q4_0: PSNR %.1f dB, with importance %.1f dB\n", psnr(&without, &plain),
                  psnr(&with, &plain));
    assert_false(same(&with, &without));
    kron_image_free(&with);
    kron_image_free(&without);
    q.importance = SHIPPED;
    assert_int_equal(kron_model_open(&m, &q), KRON_ERR_FORMAT);
    p.backend = "ref";
    assert_int_equal(kron_model_open(&m, &p), KRON_ERR_UNSUPPORTED);
}

static int set_up(void **state)
{
    make_dir(NULL);
    return open_all(state);
}

static int tear_down(void **state)
{
    remove_dir(NULL);
    return close_all(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_expanded),
        cmocka_unit_test(a_converted_file_draws_the_same),
        cmocka_unit_test(a_type_when_opening_is_that_of_a_file),
        cmocka_unit_test(a_cache_is_mapped_the_next_time),
        cmocka_unit_test(a_damaged_cache_is_made_anew),
        cmocka_unit_test(weights_are_made_when_first_used),
        cmocka_unit_test(sessions_share_what_is_made),
        cmocka_unit_test(parts_become_one_file),
        cmocka_unit_test(blocks_that_span_rows_stay_in_the_file),
        cmocka_unit_test(a_stopped_conversion_leaves_nothing),
        cmocka_unit_test(formats_say_what_they_cannot_hold),
        cmocka_unit_test(importance_is_collected_and_used),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
