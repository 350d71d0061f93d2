/* SPDX-License-Identifier: MIT
 * Blocks, steps, lists of block weights, regions: what an adapter's use says of its strengths. */
#include "adapter_fixture.h"
#include "temp_dir.h"

/* --- blocks --- */

static int block_of(enum layer_part part, const char *native)
{
    struct layer l = {.part = part, .native = native};

    return adapter_block(&l);
}

static void blocks_are_those_of_the_native_names(void **state)
{
    (void)state;
    assert_int_equal(block_of(PART_UNET, "input_blocks.0.0"), 1);
    assert_int_equal(block_of(PART_UNET, "input_blocks.4.1.proj_in"), 5);
    assert_int_equal(block_of(PART_UNET, "input_blocks.11.0.emb_layers.1"), 12);
    assert_int_equal(block_of(PART_UNET, "middle_block.1.proj_in"), 13);
    assert_int_equal(block_of(PART_UNET, "output_blocks.0.0.in_layers.2"), 14);
    assert_int_equal(block_of(PART_UNET, "output_blocks.11.1.proj_out"), 25);
    assert_int_equal(block_of(PART_UNET, "output_blocks.99.0"), 25);
    assert_int_equal(block_of(PART_UNET, "time_embed.0"), 0);
    assert_int_equal(block_of(PART_UNET, "label_emb.0.0"), 0);
    assert_int_equal(block_of(PART_UNET, "out.2"), 0);
    assert_int_equal(block_of(PART_TE0, "middle_block.1"), 0);
}

/* Every layer of a real model has a slot; each block that the architecture has is used. */
static void each_layer_of_a_model_has_its_slot(void **state)
{
    static const struct {
        const char *arch;
        int slots;
    } rows[] = {{"sd15", 27}, {"sd2", 27}, {"sdxl", 21}};

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        struct fx_table t;
        int used[ADAPTER_SLOTS] = {0}, n = 0;
        fx_table_read(&t, rows[r].arch);
        for (int i = 0; i < t.table.n; i++) {
            int slot = adapter_slot(t.table.at[i]);
            assert_in_range(slot, 0, ADAPTER_SLOTS - 1);
            assert_int_equal(slot == 0, t.table.at[i]->part != PART_UNET);
            used[slot]++;
        }
        for (int i = 0; i < ADAPTER_SLOTS; i++)
            n += used[i] > 0;
        assert_int_equal(n, rows[r].slots);
        fx_table_free(&t);
    }
}

static bool sees(enum layer_part part, const char *native)
{
    struct layer l = {.part = part, .native = native};

    return adapter_sees_image(&l);
}

static void only_some_layers_see_the_image(void **state)
{
    static const char block[] = "input_blocks.1.1.transformer_blocks.0.";
    char name[128];

    (void)state;
    assert_true(sees(PART_UNET, "input_blocks.0.0") && sees(PART_UNET, "out.2"));
    assert_true(sees(PART_UNET, "output_blocks.2.0.in_layers.2"));
    snprintf(name, sizeof name, "%sattn1.to_k", block);
    assert_true(sees(PART_UNET, name));
    snprintf(name, sizeof name, "%sattn2.to_q", block);
    assert_true(sees(PART_UNET, name));
    snprintf(name, sizeof name, "%sattn2.to_k", block);
    assert_false(sees(PART_UNET, name));
    snprintf(name, sizeof name, "%sattn2.to_v", block);
    assert_false(sees(PART_UNET, name));
    assert_false(sees(PART_UNET, "input_blocks.1.0.emb_layers.1"));
    assert_false(sees(PART_UNET, "time_embed.0") || sees(PART_UNET, "label_emb.0.2"));
    assert_false(sees(PART_TE0, "encoder.layers.0.mlp.fc1"));
}

/* --- steps --- */

static void expect_factors(const struct adapter_steps *s, int n, const float *want,
                           const char *what)
{
    for (int i = 0; i < n; i++) {
        float got = adapter_steps_factor(s, i, n);
        if (fabsf(got - want[i]) > 1e-6f)
            fail_msg("%s: step %d has %g, expected %g", what, i, (double)got, (double)want[i]);
    }
}

#define FACTORS(steps, ...)                                                                       \
    expect_factors(&(struct adapter_steps)steps,                                                  \
                   (int)(sizeof((float[]){__VA_ARGS__}) / sizeof(float)), (float[]){__VA_ARGS__}, \
                   #steps)
#define STEPS(...)  \
    {               \
        __VA_ARGS__ \
    }

static void ranges_begin_and_end_at_steps(void **state)
{
    (void)state;
    FACTORS(STEPS(.start = 0), 1, 1, 1, 1);
    FACTORS(STEPS(.start = 0.5f), 0, 0, 1, 1);
    FACTORS(STEPS(.stop = 0.5f), 1, 1, 0, 0);
    FACTORS(STEPS(.start = 0.3f, .stop = 0.7f), 0, 0, 0, 1, 1, 1, 1, 0, 0, 0);
    FACTORS(STEPS(.start = 1), 0, 0, 0, 0);
    FACTORS(STEPS(.stop = 1), 1, 1, 1, 1);
    /* As in sd-webui-lora-block-weight: from the third step on, up to the third step. */
    FACTORS(STEPS(.start = 3, .in_numbers = true), 0, 0, 1, 1);
    FACTORS(STEPS(.stop = 3, .in_numbers = true), 1, 1, 0, 0);
    FACTORS(STEPS(.start = 1, .in_numbers = true), 1, 1);
    FACTORS(STEPS(.stop = 1, .in_numbers = true), 0, 0);
    FACTORS(STEPS(.start = 9, .in_numbers = true), 0, 0);
}

static void curves_are_straight_between_points(void **state)
{
    static const kron_step_point fall[] = {{0, 1}, {1, 0}};
    static const kron_step_point hill[] = {{0.25f, 2}, {0.5f, -2}, {0.75f, 4}};
    static const kron_step_point jump[] = {{0.5f, 1}, {0.5f, 3}};
    static const kron_step_point numbers[] = {{1, 0}, {3, 1}};
    static const kron_step_point one[] = {{0.5f, 0.3f}};

    (void)state;
    FACTORS(STEPS(.points = fall, .n_points = 2), 1, 0.75f, 0.5f, 0.25f);
    FACTORS(STEPS(.points = hill, .n_points = 3), 2, 2, 2, 0, -2, 1, 4, 4);
    FACTORS(STEPS(.points = jump, .n_points = 2), 1, 1, 3, 3);
    FACTORS(STEPS(.points = numbers, .n_points = 2, .points_in_numbers = true), 0, 0.5f, 1, 1);
    FACTORS(STEPS(.points = one, .n_points = 1), 0.3f, 0.3f);
    FACTORS(STEPS(.points = fall, .n_points = 2, .start = 0.25f, .stop = 0.75f), 0, 0.75f, 0.5f, 0);
}

static void what_never_changes_may_be_merged(void **state)
{
    static const kron_step_point flat[] = {{0, 0.5f}, {1, 0.5f}}, fall[] = {{0, 1}, {1, 0}};

    (void)state;
    assert_false(adapter_steps_vary(&(struct adapter_steps){0}));
    assert_false(adapter_steps_vary(&(struct adapter_steps){.stop = 1}));
    assert_false(adapter_steps_vary(&(struct adapter_steps){.start = 1, .in_numbers = true}));
    assert_false(adapter_steps_vary(&(struct adapter_steps){.points = flat, .n_points = 2}));
    assert_true(adapter_steps_vary(&(struct adapter_steps){.points = fall, .n_points = 2}));
    assert_true(adapter_steps_vary(&(struct adapter_steps){.start = 0.1f}));
    assert_true(adapter_steps_vary(&(struct adapter_steps){.stop = 0.9f}));
    assert_true(adapter_steps_vary(&(struct adapter_steps){.start = 2, .in_numbers = true}));
    assert_true(adapter_steps_vary(&(struct adapter_steps){.stop = 1, .in_numbers = true}));
}

static void strengths_are_products(void **state)
{
    float blocks[ADAPTER_BLOCKS], s[ADAPTER_SLOTS];
    const struct adapter_use u = {
        .te_strength = 0.5f, .unet_strength = -2, .blocks = blocks, .steps = {.start = 0.5f}};

    (void)state;
    for (int i = 0; i < ADAPTER_BLOCKS; i++)
        blocks[i] = (float)i + 1;
    adapter_strengths(&u, 1, 2, s);
    assert_true(s[0] == 0.5f);
    for (int i = 0; i < ADAPTER_BLOCKS; i++)
        assert_true(s[1 + i] == -2 * blocks[i]);
    adapter_strengths(&u, 0, 2, s); /* text knows no steps */
    assert_true(s[0] == 0.5f && s[1] == 0 && s[26] == 0);
}

/* --- lists --- */

/* "1.0.0..." of the 26 factors, a digit each, * for anything else. */
static const char *digits(const float *v)
{
    static char text[ADAPTER_BLOCKS + 1];

    for (int i = 0; i < ADAPTER_BLOCKS; i++)
        text[i] = v[i] == 0 ? '0' : v[i] == 1 ? '1' : '*';
    return text;
}

static void lists_of_each_length_find_their_blocks(void **state)
{
    static const struct {
        const char *text;
        bool xl;
        const char *want; /* BASE IN00.. M00 OUT00.. */
    } rows[] = {
        {"1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", false, "10110110110001000111111111"},
        {"0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0", false, "00100000000000000000000000"},
        {"0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0", false, "00000000000001000000000000"},
        {"0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0", false, "00000000000000000100000000"},
        {"1,1,1,1,1,1,1,1,1,1,1,1", true, "10000110110001111111000000"},
        {"0,0,0,0,1,0,1,0,0,0,0,0", true, "00000000010000100000000000"},
        {"1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", true, "11111111110001111111111000"},
        {"1,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1", false,
         "10100000000000000000000001"},
        {"1,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1", true, "10100000000000000000000001"},
        {" 1 , 0 ,1,0,0,0,0,0,0,0,0,0,0,0,0,0,-0.5", false, "1001000000000000000000000*"},
        {"NONE", false, "00000000000000000000000000"},
        {"ALL", false, "10110110110001000111111111"},
        {"INS", false, "10110100000000000000000000"},
        {"IND", false, "10000010110000000000000000"},
        {"INALL", false, "10110110110000000000000000"},
        {"MIDD", false, "10000010110001000111100000"},
        {"OUTD", false, "10000000000000000111100000"},
        {"OUTS", false, "10000000000000000000011111"},
        {"OUTALL", false, "10000000000000000111111111"},
        {"ALL", true, "10000110110001111111000000"},
        {"INS", true, "10000110000000000000000000"},
        {"IND", true, "10000000110000000000000000"},
        {"MIDD", true, "10000000110001111000000000"},
        {"OUTS", true, "10000000000000000111000000"},
        {"OUTALL", true, "10000000000000111111000000"},
        {"ALL0.5", true, "*0000**0**000*******000000"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float v[ADAPTER_BLOCKS];
        if (adapter_blocks_read(NULL, rows[i].text, rows[i].xl, v) != KRON_OK)
            fail_msg("%s: %s", rows[i].text, kron_error_detail());
        if (strncmp(digits(v), rows[i].want, ADAPTER_BLOCKS) != 0)
            fail_msg("%s: %s, expected %s", rows[i].text, digits(v), rows[i].want);
    }
}

static void expect_no_blocks(const struct adapter_presets *p, const char *text, bool xl,
                             const char *want)
{
    float v[ADAPTER_BLOCKS];

    assert_int_equal(adapter_blocks_read(p, text, xl, v), KRON_ERR_ARGUMENT);
    if (strstr(kron_error_detail(), want) == NULL)
        fail_msg("%s: '%s' does not say '%s'", text, kron_error_detail(), want);
}

static void wrong_lists_are_explained(void **state)
{
    (void)state;
    expect_no_blocks(NULL, "1,2,3", false, "3 block weights, expected 17 or 26");
    expect_no_blocks(NULL, "1,1,1,1,1,1,1,1,1,1,1,1", false, "12 block weights, expected 17");
    expect_no_blocks(NULL, "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", true, "expected 12, 20 or 26");
    expect_no_blocks(NULL, "1,x,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", false, "'x' is no block weight");
    expect_no_blocks(NULL, "1,,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", false, "'' is no block weight");
    expect_no_blocks(NULL, "1,nan,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", false, "'nan' is no");
    expect_no_blocks(NULL, "1,R,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", false, "random");
    expect_no_blocks(NULL, "MIDDLE", false, "'MIDDLE'; there are NONE ALL INS");
    expect_no_blocks(NULL, "", false, "''");
}

static struct adapter_presets *presets_of(const char *text)
{
    struct adapter_presets *p;

    assert_int_equal(file_write(in_dir("presets.txt"), text, strlen(text)), KRON_OK);
    if (adapter_presets_read(&p, in_dir("presets.txt")) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    return p;
}

static void presets_come_from_a_file(void **state)
{
    struct adapter_presets *p =
        presets_of("# mine\n\n FACE : 1,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0 \r\n"
                   "ALL:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1\n"
                   "TWICE:1,1\nTWICE:0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0\n"
                   "FLUX:1,1,1\nLAST:1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0");
    float v[ADAPTER_BLOCKS];

    (void)state;
    assert_int_equal(adapter_blocks_read(p, "FACE", false, v), KRON_OK);
    assert_string_equal(digits(v), "10000000000000000111000000");
    assert_int_equal(adapter_blocks_read(p, "ALL", false, v), KRON_OK); /* before the built-in */
    assert_string_equal(digits(v), "00000000000000000000000001");
    assert_int_equal(adapter_blocks_read(p, "TWICE", false, v), KRON_OK);
    assert_string_equal(digits(v), "00100000000000000000000000");
    assert_int_equal(adapter_blocks_read(p, "LAST", false, v), KRON_OK);
    assert_int_equal(adapter_blocks_read(p, "OUTS", false, v), KRON_OK);
    expect_no_blocks(p, "FLUX", false, "presets.txt: line 7: 3 block weights");
    expect_no_blocks(p, "FACE", true, "line 3: 17 block weights");
    expect_no_blocks(p, "nothing", false, "presets.txt");
    adapter_presets_free(&p);
    assert_int_equal(file_write(in_dir("presets.txt"), "A:1,1\nB 1,1\n", 12), KRON_OK);
    assert_int_equal(adapter_presets_read(&p, in_dir("presets.txt")), KRON_ERR_FORMAT);
    assert_non_null(strstr(kron_error_detail(), "line 2"));
    assert_null(p);
    assert_int_equal(adapter_presets_read(&p, in_dir("nothing.txt")), KRON_ERR_IO);
}

static void presets_without_memory(void **state)
{
    static const char text[] = "A:1,1\nB:2,2\n";
    kron_status status = KRON_ERR_MEMORY;
    struct adapter_presets *p = NULL;
    long n = 1;

    (void)state;
    assert_int_equal(file_write(in_dir("presets.txt"), text, sizeof text - 1), KRON_OK);
    for (; status != KRON_OK; n++) {
        mem_fail_after(n);
        status = adapter_presets_read(&p, in_dir("presets.txt"));
        mem_fail_after(0);
        assert_true(status == KRON_OK || (status == KRON_ERR_MEMORY && p == NULL));
    }
    assert_true(n > 4);
    adapter_presets_free(&p);
}

/* --- binding --- */

static void add_lora(struct fx_file *f, const char *prefix, int64_t out, int64_t in)
{
    uint64_t seed = 5;
    char name[400];

    snprintf(name, sizeof name, "%s.lora_down.weight", prefix);
    fx_add(f, name, DT_F16, &seed, FX_DIMS(2, in));
    snprintf(name, sizeof name, "%s.lora_up.weight", prefix);
    fx_add(f, name, DT_F16, &seed, FX_DIMS(out, 2));
    snprintf(name, sizeof name, "%s.alpha", prefix);
    fx_add_scalar(f, name, DT_F16, 1);
}

struct bound {
    struct fx_file file;
    struct fx_table t;
    struct adapter_file *f;
    struct adapter_names *names;
    struct adapter_set *set;
};

static const char q[] = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q";

/* One module of the text encoder, one of the time embedding, text's values, text's queries. */
static void make(struct bound *b)
{
    uint64_t seed = 3;

    fx_table_read(&b->t, "sd15");
    assert_int_equal(adapter_names_create(&b->names, &b->t.table), KRON_OK);
    add_lora(&b->file, "lora_te_text_model_encoder_layers_0_mlp_fc1", 64, 16);
    add_lora(&b->file, "lora_unet_time_embedding_linear_1", 128, 32);
    add_lora(&b->file, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v", 32,
             16);
    add_lora(&b->file, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q", 32,
             32);
    fx_add(&b->file, "lora_unet_conv_out.diff", DT_F16, &seed, FX_DIMS(4, 32, 3, 3));
    assert_int_equal(fx_open(&b->file, &b->f, NULL), KRON_OK);
}

static void release(struct bound *b)
{
    adapter_set_free(&b->set);
    adapter_close(&b->f);
    adapter_names_free(&b->names);
    fx_free(&b->file);
    fx_table_free(&b->t);
}

static void bind(struct bound *b, struct adapter_use u)
{
    adapter_set_free(&b->set);
    u.file = b->f;
    u.te_strength = u.unet_strength = 1;
    if (adapter_bind(&b->set, &u, 1, b->names, true) != KRON_OK)
        fail_msg("%s", kron_error_detail());
}

/* The delta of a layer by its name with underscores; NULL: none. */
static const struct delta *delta_of(const struct bound *b, const char *name)
{
    for (int i = 0; i < b->t.table.n; i++) {
        const struct layer *l = b->t.table.at[i];
        struct delta_list list = delta_set_list(adapter_set_deltas(b->set), l);
        char flat[256];
        snprintf(flat, sizeof flat, "%s", l->name);
        for (char *c = flat; *c != '\0'; c++)
            *c = *c == '.' ? '_' : *c;
        if (strcmp(flat, name) == 0)
            return list.n > 0 ? list.at : NULL;
    }
    fail_msg("no layer %s", name);
    return NULL;
}

static void a_use_reaches_its_deltas(void **state)
{
    struct bound b = {0};

    (void)state;
    make(&b);
    bind(&b, (struct adapter_use){0});
    assert_true(delta_of(&b, q)->scale == 0.5f && delta_of(&b, "conv_out")->scale == 1);
    assert_false(delta_of(&b, q)->varying);
    assert_int_equal(delta_of(&b, q)->strength, 3); /* IN01 */
    assert_int_equal(delta_of(&b, "conv_out")->strength, 1);
    assert_int_equal(delta_of(&b, "time_embedding_linear_1")->strength, 1);
    assert_int_equal(delta_of(&b, "encoder_layers_0_mlp_fc1")->strength, 0);
    bind(&b, (struct adapter_use){.scale = 3, .steps = {.start = 0.5f}});
    assert_true(delta_of(&b, q)->scale == 3 && delta_of(&b, "conv_out")->scale == 1);
    assert_true(delta_of(&b, q)->varying && delta_of(&b, "conv_out")->varying);
    assert_false(delta_of(&b, "encoder_layers_0_mlp_fc1")->varying);
    release(&b);
}

static void a_region_keeps_to_what_sees_the_image(void **state)
{
    struct bound b = {0};
    float mask[6] = {0, 0.25f, 0.5f, 0.75f, 1, 0};
    const struct delta_region region = {3, 2, mask};
    struct str text = {0};

    (void)state;
    make(&b);
    bind(&b, (struct adapter_use){.region = &region}); /* strict: leaving out is no skip */
    assert_null(delta_of(&b, "encoder_layers_0_mlp_fc1"));
    assert_null(delta_of(&b, "time_embedding_linear_1"));
    assert_null(delta_of(&b, "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"));
    const struct delta *d = delta_of(&b, q);
    assert_non_null(d);
    memset(mask, 0, sizeof mask); /* the set has its own */
    assert_true(d->region != NULL && d->region != &region);
    assert_true(d->region->w == 3 && d->region->h == 2 && d->region->mask[4] == 1);
    assert_ptr_equal(delta_of(&b, "conv_out")->region, d->region);
    assert_int_equal(adapter_set_report(b.set, 0)->n_outside, 3);
    assert_int_equal(adapter_set_report(b.set, 0)->n_applied, 2);
    adapter_report_text(adapter_set_report(b.set, 0), 9, &text);
    assert_non_null(strstr(str_get(&text), "3 modules read the text or the time"));
    str_free(&text);
    release(&b);
}

/* Only what adds a product can be confined: the rest is skipped, each with its reason. */
static void a_region_skips_what_does_more_than_add(void **state)
{
    static const char key[] = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_";
    struct bound b = {0};
    const float mask[1] = {1};
    const struct delta_region region = {1, 1, mask};
    struct adapter_use u = {.unet_strength = 1, .region = &region};
    uint64_t seed = 3;
    char name[256];

    (void)state;
    fx_table_read(&b.t, "sd15");
    assert_int_equal(adapter_names_create(&b.names, &b.t.table), KRON_OK);
    for (const char *c = "qkv"; *c != '\0'; c++) { /* LoRA; with a bias; DoRA */
        snprintf(name, sizeof name, "%s%c", key, *c);
        add_lora(&b.file, name, 32, 32);
    }
    snprintf(name, sizeof name, "%sk.diff_b", key);
    fx_add(&b.file, name, DT_F16, &seed, FX_DIMS(32));
    snprintf(name, sizeof name, "%sv.dora_scale", key);
    fx_add(&b.file, name, DT_F16, &seed, FX_DIMS(32, 1));
    fx_add(&b.file, "lora_unet_conv_norm_out.w_norm", DT_F16, &seed, FX_DIMS(32));
    fx_add(&b.file, "lora_unet_conv_out.diff", DT_F16, &seed, FX_DIMS(4, 32, 3, 3));
    assert_int_equal(fx_open(&b.file, &b.f, NULL), KRON_OK);
    u.file = b.f;
    if (adapter_bind(&b.set, &u, 1, b.names, false) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    const struct adapter_report *r = adapter_set_report(b.set, 0);
    assert_int_equal(r->n_skips, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(r->skips[i].why, ADAPTER_SKIP_FAMILY);
        assert_non_null(strstr(r->skips[i].text, "region"));
    }
    assert_null(delta_of(&b, "conv_norm_out"));
    assert_null(delta_of(&b, "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v"));
    assert_non_null(delta_of(&b, "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"));
    assert_non_null(delta_of(&b, "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"));
    assert_non_null(delta_of(&b, "conv_out"));
    adapter_set_free(&b.set);
    assert_int_equal(adapter_bind(&b.set, &u, 1, b.names, true), KRON_ERR_UNSUPPORTED);
    release(&b);
}

static void a_region_that_leaves_nothing_is_an_error(void **state)
{
    struct bound b = {0};
    const float mask[1] = {1};
    const struct delta_region region = {1, 1, mask};
    struct adapter_use u = {.region = &region};

    (void)state;
    fx_table_read(&b.t, "sd15");
    assert_int_equal(adapter_names_create(&b.names, &b.t.table), KRON_OK);
    add_lora(&b.file, "lora_te_text_model_encoder_layers_0_mlp_fc1", 64, 16);
    assert_int_equal(fx_open(&b.file, &b.f, NULL), KRON_OK);
    u.file = b.f;
    assert_int_equal(adapter_bind(&b.set, &u, 1, b.names, false), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "region"));
    release(&b);
}

/* OFT turns the plain product, IA3 scales rows: together they need a merged weight. */
static void what_must_be_merged_does_not_vary(void **state)
{
    struct fx_one o;
    struct fx_file files[2] = {{{0}}};
    struct adapter_file *f[2];
    struct adapter_set *set;
    uint64_t seed = 3;

    (void)state;
    fx_one_create(&o, 8, 6, 1, 1, false);
    fx_add(&files[0], "lora_unet_conv_in.oft_blocks", DT_F16, &seed, FX_DIMS(2, 4, 4));
    fx_add(&files[1], "lora_unet_conv_in.weight", DT_F16, &seed, FX_DIMS(8));
    fx_add_scalar(&files[1], "lora_unet_conv_in.on_input", DT_F16, 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(fx_open(&files[i], &f[i], NULL), KRON_OK);
    struct adapter_use uses[] = {{f[0], 1, 1}, {f[1], 1, 1}};
    assert_int_equal(adapter_bind(&set, uses, 2, o.names, true), KRON_OK);
    adapter_set_free(&set);
    uses[1].steps.stop = 0.5f;
    assert_int_equal(adapter_bind(&set, uses, 2, o.names, true), KRON_ERR_UNSUPPORTED);
    assert_non_null(strstr(kron_error_detail(), "conv_in: OFT beside"));
    assert_int_equal(adapter_bind(&set, uses + 1, 1, o.names, true), KRON_OK); /* alone it may */
    adapter_set_free(&set);
    for (int i = 0; i < 2; i++) {
        adapter_close(&f[i]);
        fx_free(&files[i]);
    }
    adapter_names_free(&o.names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_must_be_merged_does_not_vary),
        cmocka_unit_test(blocks_are_those_of_the_native_names),
        cmocka_unit_test(each_layer_of_a_model_has_its_slot),
        cmocka_unit_test(only_some_layers_see_the_image),
        cmocka_unit_test(ranges_begin_and_end_at_steps),
        cmocka_unit_test(curves_are_straight_between_points),
        cmocka_unit_test(what_never_changes_may_be_merged),
        cmocka_unit_test(strengths_are_products),
        cmocka_unit_test(lists_of_each_length_find_their_blocks),
        cmocka_unit_test(wrong_lists_are_explained),
        cmocka_unit_test(presets_come_from_a_file),
        cmocka_unit_test(presets_without_memory),
        cmocka_unit_test(a_use_reaches_its_deltas),
        cmocka_unit_test(a_region_keeps_to_what_sees_the_image),
        cmocka_unit_test(a_region_skips_what_does_more_than_add),
        cmocka_unit_test(a_region_that_leaves_nothing_is_an_error),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
