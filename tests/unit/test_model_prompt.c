/* SPDX-License-Identifier: MIT
 * Prompt syntax row by row, and the cut into windows. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "model/prompt.h"
#include <stdlib.h>
#include <string.h>

static struct tokenizer *tok;

static int set_up(void **state)
{
    (void)state;
    return tok_create(&tok) == KRON_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    tok_free(&tok);
    return 0;
}

/* Writes a prompt as "text*weight|text*weight", BREAK as "#", then " {name te unet}" for each. */
static void describe(const struct prompt *p, struct str *out)
{
    for (size_t i = 0; i < p->n_segments; i++) {
        const struct prompt_segment *s = &p->segments[i];
        str_add(out, i > 0 ? "|" : "");
        if (s->is_break)
            str_add(out, "#");
        else
            str_addf(out, "%s*%.6g", s->text, s->weight);
        assert_int_equal(s->len, strlen(s->text));
    }
    for (size_t i = 0; i < p->n_adapters; i++)
        str_addf(out, " {%s %.6g %.6g}", p->adapters[i].name, p->adapters[i].te_strength,
                 p->adapters[i].unet_strength);
}

struct row {
    const char *text, *want;
};

static void check_rows(const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct prompt p;
        struct str got = {0};
        kron_status status = prompt_parse(&p, rows[i].text, strlen(rows[i].text));
        if (status != KRON_OK)
            fail_msg("'%s': %s", rows[i].text, kron_error_detail());
        describe(&p, &got);
        if (strcmp(str_get(&got), rows[i].want) != 0)
            fail_msg("'%s' gave '%s', expected '%s'", rows[i].text, str_get(&got), rows[i].want);
        str_free(&got);
        prompt_free(&p);
    }
}

#define CHECK_ROWS(rows) check_rows(rows, sizeof(rows) / sizeof *(rows))

static void test_attention(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"", ""},
        {"a cat", "a cat*1"},
        {"(a)", "a*1.1"},
        {"((b))", "b*1.21"},
        {"[c]", "c*0.909091"},
        {"[[c]]", "c*0.826446"},
        {"(a:1.2)", "a*1.2"},
        {"(a:0)", "a*0"},
        {"(a:-0.5)", "a*-0.5"},
        {"(a:+1.5)", "a*1.5"},
        {"(a:.5)", "a*0.5"},
        {"(a:2.)", "a*2"},
        {"(a:1e-1)", "a*0.1"},
        {"(a: 1.2 )", "a*1.2"},
        {"a (b:1.2) c", "a *1|b*1.2| c*1"},
        {"(a (b:2) c:3)", "a *3|b*6| c*3"},
        {"((a:2))", "a*2.2"},
        {"([a])", "a*1"},
        {"(a [b:1.5] c)", "a *1.1|b:1.5*1| c*1.1"},
        {"(a)(b)", "ab*1.1"},
        {"()", ""},
        {"[]", ""},
        {"(:1.2)", ""},
        {"a:b", "a:b*1"},
        {"a:1.2", "a:1.2*1"},
    };
    CHECK_ROWS(rows);
}

static void test_unbalanced_brackets(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"a)", "a)*1"},
        {"a]", "a]*1"},
        {"a:1.2)", "a:1.2)*1"},
        {"(a", "a*1.1"},
        {"((a", "a*1.21"},
        {"x (a", "x *1|a*1.1"},
        {"[a", "a*0.909091"},
        {"(a]", "a]*1.1"},
        {"(a [b) c", "a *1.1|b*1| c*0.909091"},
        {"(a))", "a*1.1|)*1"},
        {"[a:1.2)", "a:1.2)*0.909091"},
        {"(a:)", "a:*1.1"},
        {"(a:x)", "a:x*1.1"},
        {"(a:1.2.3)", "a:1.2.3*1.1"},
        {"(a:.)", "a:.*1.1"},
        {"(a:-)", "a:-*1.1"},
        {"(a:1.2", "a:1.2*1.1"},
        {"(a:nan)", "a:nan*1.1"},
        {"(a:0x10)", "a:0x10*1.1"},
        {"(a:1.2 b)", "a:1.2 b*1.1"},
    };
    CHECK_ROWS(rows);
}

static void test_escapes(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"\\(a\\)", "(a)*1"},
        {"\\[a\\]", "[a]*1"},
        {"a\\\\b", "a\\b*1"},
        {"(a \\(b\\):1.3)", "a (b)*1.3"},
        {"\\\\(a)", "\\*1|a*1.1"},
        {"a\\b", "ab*1"},
        {"a\\", "a*1"},
        {"\\((a)", "(*1|a*1.1"},
    };
    CHECK_ROWS(rows);
}

static void test_break(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"a BREAK b", "a*1|#|b*1"},
        {"a  BREAK\nb", "a*1|#|b*1"},
        {"BREAK", "#"},
        {"a, BREAK, b", "a,*1|#|, b*1"},
        {"a BREAK BREAK b", "a*1|#|#|b*1"},
        {"aBREAK b", "aBREAK b*1"},
        {"a BREAKS b", "a BREAKS b*1"},
        {"a _BREAK b", "a _BREAK b*1"},
        {"\xc3\xa9" "BREAK BREAK\xc3\xa9", "\xc3\xa9" "BREAK BREAK\xc3\xa9*1"},
        {"\xe3\x80\x82" "BREAK\xe3\x80\x82", "\xe3\x80\x82*1|#|\xe3\x80\x82*1"},
        {"a break b", "a break b*1"},
        {"(a BREAK b:1.2)", "a*1.2|#|b*1.2"},
        {"(BREAK:1.2)", "#"},
        {"(a) BREAK (b)", "a*1.1|#|b*1.1"},
        {"a BREA", "a BREA*1"},
    };
    CHECK_ROWS(rows);
}

static void test_tags(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"<lora:x:0.8>", " {x 0.8 0.8}"},
        {"<lora:x>", " {x 1 1}"},
        {"<lora:x:0.5:0.25>", " {x 0.5 0.25}"},
        {"<lyco:x:0.5>", " {x 0.5 0.5}"},
        {"<LoRA:x:0.5>", " {x 0.5 0.5}"},
        {"<lora:x:-1.5>", " {x -1.5 -1.5}"},
        {"<lora:x:+1>", " {x 1 1}"},
        {"<lora:x:5e-1:1E+1>", " {x 0.5 10}"},
        {"<lora:x: 0.5 : 1 >", " {x 0.5 1}"},
        {"<lora: my file v1.0 :1>", " {my file v1.0 1 1}"},
        {"<lora:sub/dir/x:1>", " {sub/dir/x 1 1}"},
        {"<lora:a=b:1>", " {a=b 1 1}"},
        {"<lora:x:te=0.5>", " {x 0.5 0.5}"},
        {"<lora:x:unet=0.5>", " {x 1 0.5}"},
        {"<lora:x:te=0:unet=0.5>", " {x 0 0.5}"},
        {"<lora:x:0.7:unet=0.5>", " {x 0.7 0.5}"},
        {"<lora:x:0.7:0.6:te=0.5>", " {x 0.5 0.6}"},
        {"a <lora:x:1> b", "a  b*1 {x 1 1}"},
        {"a<lora:x:1>b", "ab*1 {x 1 1}"},
        {"(a <lora:x:0.5>b:1.2)", "a b*1.2 {x 0.5 0.5}"},
        {"<lora:b:1><lora:a:2>,<lora:b:3>", ",*1 {b 1 1} {a 2 2} {b 3 3}"},
        {"<3 a < b > c <lor:x:1>", "<3 a < b > c <lor:x:1>*1"},
        {"<b:1>", "<b:1>*1"},
        {"<<lora:x:1>>", "<>*1 {x 1 1}"},
    };
    CHECK_ROWS(rows);
}

/* All that a tag says beyond its name and strengths, in one line. */
static const char *rest_of(const struct prompt_adapter *a)
{
    static char text[512];
    size_t n = 0;
    text[0] = '\0';
    if (a->blocks != NULL)
        n += (size_t)snprintf(text + n, sizeof text - n, " lbw %s", a->blocks);
    if (a->start > 0 || a->stop > 0)
        n += (size_t)snprintf(text + n, sizeof text - n, " %s %g-%g",
                              a->in_numbers ? "steps" : "run", a->start, a->stop);
    for (size_t i = 0; i < a->n_points; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%g@%g", i ? "," : " ",
                              a->points[i].factor, a->points[i].at);
    if (a->points_in_numbers)
        n += (size_t)snprintf(text + n, sizeof text - n, " numbered");
    if (a->scale != 0)
        n += (size_t)snprintf(text + n, sizeof text - n, " scale %g", a->scale);
    if (a->mask != NULL)
        n += (size_t)snprintf(text + n, sizeof text - n, " mask %s", a->mask);
    if (a->region[2] > 0)
        snprintf(text + n, sizeof text - n, " region %g %g %g %g", a->region[0], a->region[1],
                 a->region[2], a->region[3]);
    return text;
}

static void test_fields(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double te, unet;
        const char *rest;
    } rows[] = {
        {"x:0.5:1", 0.5, 1, ""},
        {"x:0.5:lbw=OUTALL", 0.5, 0.5, " lbw OUTALL"},
        {"x:1:1:lbw= 1,0,1 ", 1, 1, " lbw 1,0,1"},
        {"x:1:w=MIDD", 1, 1, " lbw MIDD"},
        {"x:LBW=IND:0.5", 0.5, 0.5, " lbw IND"},
        {"x:1:start=10", 1, 1, " steps 10-0"},
        {"x:1:stop=10", 1, 1, " steps 0-10"},
        {"x:1:end=10", 1, 1, " steps 0-10"},
        {"x:1:start=5:stop=10", 1, 1, " steps 5-10"},
        {"x:1:step=5-10", 1, 1, " steps 5-10"},
        {"x:1:start=0.25", 1, 1, " run 0.25-0"},
        {"x:1:stop=0.5", 1, 1, " run 0-0.5"},
        {"x:1:start=1.0", 1, 1, " run 1-0"},
        {"x:1:start=1", 1, 1, " steps 1-0"},
        {"x:1:start=0:stop=0.5", 1, 1, " run 0-0.5"},
        {"x:1:start=0:stop=5", 1, 1, " steps 0-5"},
        {"x:1:step=0.2-0.8", 1, 1, " run 0.2-0.8"},
        {"x:0.5@0,1@0.5", 0.5, 1, " 0.5@0,1@0.5"},
        {"x:0.5@0,1@0.5:te=0", 0, 1, " 0.5@0,1@0.5"},
        {"x:0.25:1@0,0@1", 0.25, 1, " 1@0,0@1"},
        {"x:0.25:unet=1@0,-1@20", 0.25, 1, " 1@0,-1@20 numbered"},
        {"x:0.5:step=0@0,1@1", 0.5, 0.5, " 0@0,1@1"},
        {"x:0.5:step=0@0, 1 @ 0.5 ,0@0.5:stop=0.9", 0.5, 0.5, " run 0-0.9 0@0,1@0.5,0@0.5"},
        {"x:1:scale=-0.125", 1, 1, " scale -0.125"},
        {"x:1:mask=left half.png", 1, 1, " mask left half.png"},
        {"x:1:region=0,0.25,0.5,1", 1, 1, " region 0 0.25 0.5 1"},
        {"x:0.5:lbw=ALL:start=0.1:scale=2:region=0,0,1,1:mask=m.png:te=0", 0, 0,
         " lbw ALL run 0.1-0 scale 2 mask m.png region 0 0 1 1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct prompt_adapter a;
        struct prompt p;
        struct arena mem = {0};
        char tag[256];
        if (prompt_read_adapter(&a, &mem, rows[i].text) != KRON_OK)
            fail_msg("%s: %s", rows[i].text, kron_error_detail());
        assert_string_equal(a.name, "x");
        if (a.te_strength != rows[i].te || a.unet_strength != rows[i].unet ||
            strcmp(rest_of(&a), rows[i].rest) != 0)
            fail_msg("%s: %g %g '%s'", rows[i].text, a.te_strength, a.unet_strength, rest_of(&a));
        arena_free(&mem);
        snprintf(tag, sizeof tag, "cat <lora:%s>", rows[i].text);
        assert_int_equal(prompt_parse(&p, tag, strlen(tag)), KRON_OK);
        assert_int_equal(p.n_adapters, 1);
        assert_string_equal(rest_of(&p.adapters[0]), rows[i].rest);
        prompt_free(&p);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        kron_status status;
        const char *named; /* must stand in the message */
    } rows[] = {
        {"a <lora:x:y> b", KRON_ERR_ARGUMENT, "<lora:x:y>"},
        {"<lora:x:>", KRON_ERR_ARGUMENT, "<lora:x:>"},
        {"<lora:x:1.2.3>", KRON_ERR_ARGUMENT, "<lora:x:1.2.3>"},
        {"<lora:x:1 2>", KRON_ERR_ARGUMENT, "<lora:x:1 2>"},
        {"<lora:x:nan>", KRON_ERR_ARGUMENT, "<lora:x:nan>"},
        {"<lora:x:inf>", KRON_ERR_ARGUMENT, "<lora:x:inf>"},
        {"<lora:x:1e99>", KRON_ERR_ARGUMENT, "<lora:x:1e99>"},
        {"<lora:x:1:2:3>", KRON_ERR_ARGUMENT, "more than two"},
        {"<lora::1>", KRON_ERR_ARGUMENT, "<lora::1>"},
        {"<lora:>", KRON_ERR_ARGUMENT, "<lora:>"},
        {"<lora: >", KRON_ERR_ARGUMENT, "no name"},
        {"<lora:x:te=>", KRON_ERR_ARGUMENT, "<lora:x:te=>"},
        {"<lora:x:unet=a>", KRON_ERR_ARGUMENT, "<lora:x:unet=a>"},
        {"<lora:x:dyn=4>", KRON_ERR_UNSUPPORTED, "<lora:x:dyn=4>"},
        {"<lora:x:1:lbwe=A>", KRON_ERR_UNSUPPORTED, "te= unet= lbw="},
        {"<lora:x:bad:te=1>", KRON_ERR_ARGUMENT, "not a number"},
        {"<lora:x:1:bad:unet=1>", KRON_ERR_ARGUMENT, "not a number"},
        {"<lora:x:1:lbw=>", KRON_ERR_ARGUMENT, "need a value"},
        {"<lora:x:te=1:te=2>", KRON_ERR_ARGUMENT, "twice"},
        {"<lora:x:stop=4:end=5>", KRON_ERR_ARGUMENT, "twice"},
        {"<lora:x:step=1-4:stop=5>", KRON_ERR_ARGUMENT, "twice"},
        {"<lora:x:start=4:step=1-4>", KRON_ERR_ARGUMENT, "twice"},
        {"<lora:x:start=-1>", KRON_ERR_ARGUMENT, "share of the steps"},
        {"<lora:x:start=1.5>", KRON_ERR_ARGUMENT, "share of the steps"},
        {"<lora:x:start=half>", KRON_ERR_ARGUMENT, "share of the steps"},
        {"<lora:x:stop=0>", KRON_ERR_ARGUMENT, "above 0"},
        {"<lora:x:start=4:stop=0.5>", KRON_ERR_ARGUMENT, "both"},
        {"<lora:x:start=8:stop=4>", KRON_ERR_ARGUMENT, "not before"},
        {"<lora:x:step=4>", KRON_ERR_ARGUMENT, "range A-B"},
        {"<lora:x:step=1@0,2>", KRON_ERR_ARGUMENT, "VALUE@PLACE"},
        {"<lora:x:step=1@0,2@>", KRON_ERR_ARGUMENT, "VALUE@PLACE"},
        {"<lora:x:step=1@1,2@0>", KRON_ERR_ARGUMENT, "must not fall"},
        {"<lora:x:step=1@-1>", KRON_ERR_ARGUMENT, "VALUE@PLACE"},
        {"<lora:x:unet=1@0:step=1@0>", KRON_ERR_ARGUMENT, "more than one curve"},
        {"<lora:x:te=1@0,0@1>", KRON_ERR_ARGUMENT, "text is encoded before"},
        {"<lora:x:1@0,0@1:0.5>", KRON_ERR_ARGUMENT, "text is encoded before"},
        {"<lora:x:scale=0>", KRON_ERR_ARGUMENT, "scale="},
        {"<lora:x:scale=x>", KRON_ERR_ARGUMENT, "scale="},
        {"<lora:x:mask= >", KRON_ERR_ARGUMENT, "need a value"},
        {"<lora:x:region=0,0,1>", KRON_ERR_ARGUMENT, "LEFT,TOP"},
        {"<lora:x:region=0,0,1,1,1>", KRON_ERR_ARGUMENT, "LEFT,TOP"},
        {"<lora:x:region=0.5,0,0.5,1>", KRON_ERR_ARGUMENT, "LEFT,TOP"},
        {"<lora:x:region=0,0,1,1.5>", KRON_ERR_ARGUMENT, "LEFT,TOP"},
        {"<lora:x:0.5, a cat", KRON_ERR_ARGUMENT, "no closing >"},
        {"<hypernet:x:1>", KRON_ERR_UNSUPPORTED, "<hypernet:x:1>"},
        {"((a:1e30):1e30)", KRON_ERR_ARGUMENT, "weight"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct prompt p;
        kron_status status = prompt_parse(&p, rows[i].text, strlen(rows[i].text));
        if (status != rows[i].status || strstr(kron_error_detail(), rows[i].named) == NULL)
            fail_msg("'%s': status %d, '%s'", rows[i].text, (int)status, kron_error_detail());
        assert_null(p.segments);
    }
    struct prompt p;
    assert_int_equal(prompt_parse(&p, "<lora:a\0b:1>", 12), KRON_ERR_ARGUMENT);
    assert_null(strchr(kron_error_detail(), '\n'));
    assert_int_equal(prompt_parse(&p, "<lora:a\n:x>", 11), KRON_ERR_ARGUMENT);
    assert_null(strchr(kron_error_detail(), '\n'));
}

static void test_deep_nesting(void **state)
{
    (void)state;
    char text[300];
    struct prompt p;
    memset(text, '(', sizeof text);
    assert_int_equal(prompt_parse(&p, text, 256), KRON_OK);
    prompt_free(&p);
    assert_int_equal(prompt_parse(&p, text, 257), KRON_ERR_ARGUMENT);
    memset(text, '[', sizeof text);
    assert_int_equal(prompt_parse(&p, text, 257), KRON_ERR_ARGUMENT);
}

static void test_too_long(void **state)
{
    (void)state;
    char *text = calloc(1, TOK_TEXT_MAX_BYTES + 1);
    struct prompt p;
    assert_non_null(text);
    assert_int_equal(prompt_parse(&p, text, TOK_TEXT_MAX_BYTES + 1), KRON_ERR_ARGUMENT);
    free(text);
}

/* --- windows --- */

static struct prompt_windows windows_of(const char *text)
{
    struct prompt p;
    struct prompt_windows w;
    assert_int_equal(prompt_parse(&p, text, strlen(text)), KRON_OK);
    assert_int_equal(prompt_tokenize(&w, tok, &p, NULL, 0), KRON_OK);
    prompt_free(&p);
    return w;
}

enum { CAT = 2368, DOG = 1929, A = 320, MAX_WINDOWS = 4 };

static int32_t ids[MAX_WINDOWS * TOK_WINDOW];
static float weights[MAX_WINDOWS * TOK_WINDOW];

/* Fills the arrays above; the number of windows that the text itself makes. */
static size_t fill(const char *text, size_t n_windows, int32_t pad)
{
    struct prompt_windows w = windows_of(text);
    size_t n = w.n;
    assert_true(n <= MAX_WINDOWS);
    memset(ids, 0xff, sizeof ids);
    memset(weights, 0xff, sizeof weights);
    prompt_windows_fill(&w, n_windows < n ? n : n_windows, pad, ids, weights);
    prompt_windows_free(&w);
    return n;
}

static void expect_empty(size_t window, int32_t pad)
{
    const int32_t *row = ids + window * TOK_WINDOW;
    assert_int_equal(row[0], TOK_START);
    assert_int_equal(row[1], TOK_END);
    for (size_t i = 2; i < TOK_WINDOW; i++)
        assert_int_equal(row[i], pad);
    for (size_t i = 0; i < TOK_WINDOW; i++)
        assert_true(weights[window * TOK_WINDOW + i] == 1);
}

static void test_empty_prompt_is_one_window(void **state)
{
    (void)state;
    assert_int_equal(fill("", 1, 0), 1);
    expect_empty(0, 0);
    assert_int_equal(fill("()", 3, TOK_END), 1);
    for (size_t i = 0; i < 3; i++)
        expect_empty(i, TOK_END);
    assert_int_equal(ids[3 * TOK_WINDOW], -1);
}

static void test_weights_stand_at_their_ids(void **state)
{
    (void)state;
    assert_int_equal(fill("a (cat:1.5) [dog]", 1, 0), 1);
    static const int32_t want[] = {TOK_START, A, CAT, DOG, TOK_END, 0};
    assert_memory_equal(ids, want, sizeof want);
    static const float want_weights[] = {1, 1, 1.5f, (float)(1 / 1.1), 1, 1};
    assert_memory_equal(weights, want_weights, sizeof want_weights);
}

static void test_a_segment_ends_a_word(void **state)
{
    (void)state;
    assert_int_equal(fill("cat(dog)", 1, 0), 1);
    static const int32_t want[] = {TOK_START, CAT, DOG, TOK_END};
    assert_memory_equal(ids, want, sizeof want);
}

/* n cats, the last one weighing 2. */
static size_t fill_cats(int n, size_t n_windows, const char *after)
{
    struct str text = {0};
    for (int i = 1; i < n; i++)
        str_add(&text, "cat ");
    str_add(&text, "(cat:2)");
    str_add(&text, after);
    size_t n_made = fill(str_get(&text), n_windows, 0);
    str_free(&text);
    return n_made;
}

static void test_cut_after_75(void **state)
{
    (void)state;
    assert_int_equal(fill_cats(74, 1, ""), 1);
    assert_int_equal(ids[74], CAT);
    assert_int_equal(ids[75], TOK_END);
    assert_int_equal(ids[76], 0);
    assert_int_equal(fill_cats(75, 1, ""), 1);
    assert_int_equal(ids[75], CAT);
    assert_int_equal(ids[76], TOK_END);
    assert_true(weights[75] == 2 && weights[76] == 1 && weights[74] == 1);
    assert_int_equal(fill_cats(76, 3, ""), 2);
    static const int32_t want[] = {TOK_START, CAT, TOK_END, 0};
    assert_memory_equal(ids + TOK_WINDOW, want, sizeof want);
    assert_true(weights[TOK_WINDOW] == 1 && weights[TOK_WINDOW + 1] == 2);
    expect_empty(2, 0);
    assert_int_equal(fill_cats(151, 3, ""), 3);
}

static void test_break_fills_up_a_window(void **state)
{
    (void)state;
    assert_int_equal(fill("a BREAK (cat:2)", 2, 0), 2);
    static const int32_t first[] = {TOK_START, A, TOK_END, 0};
    static const int32_t second[] = {TOK_START, CAT, TOK_END, 0};
    assert_memory_equal(ids, first, sizeof first);
    assert_memory_equal(ids + TOK_WINDOW, second, sizeof second);
    assert_true(weights[1] == 1 && weights[TOK_WINDOW + 1] == 2);

    assert_int_equal(fill("BREAK cat", 2, 0), 2);
    expect_empty(0, 0);
    assert_memory_equal(ids + TOK_WINDOW, second, sizeof second);
    assert_int_equal(fill("cat BREAK BREAK cat", 3, 0), 3);
    expect_empty(1, 0);
    assert_int_equal(fill("BREAK", 1, 0), 1);
    assert_int_equal(fill("cat BREAK", 1, 0), 1);
    assert_int_equal(fill_cats(75, 2, " BREAK cat"), 2);
    assert_memory_equal(ids + TOK_WINDOW, second, sizeof second);
}

static void test_weights_may_be_left_out(void **state)
{
    (void)state;
    struct prompt_windows w = windows_of("a cat");
    prompt_windows_fill(&w, 1, 0, ids, NULL);
    static const int32_t want[] = {TOK_START, A, CAT, TOK_END, 0};
    assert_memory_equal(ids, want, sizeof want);
    prompt_windows_free(&w);
    assert_null(w.ids);
}

/* --- words that stand for vectors --- */

enum { W0 = TOK_COUNT }; /* the first id past the table */

static const struct prompt_word words[] = {
    {"my-cat", W0, 2}, {"my", W0 + 2, 1}, {"Zo\xc3\xa9", W0 + 3, 1}, {"<dog>", W0 + 4, 3}};

static void expect_words(const char *text, const int32_t *want, size_t n)
{
    struct prompt p;
    struct prompt_windows w;

    assert_int_equal(prompt_parse(&p, text, strlen(text)), KRON_OK);
    assert_int_equal(prompt_tokenize(&w, tok, &p, words, sizeof words / sizeof *words), KRON_OK);
    if (w.starts[w.n] != n || memcmp(w.ids, want, n * sizeof *want) != 0)
        fail_msg("%s: %zu ids, first %d", text, w.starts[w.n], n > 0 ? (int)w.ids[0] : -1);
    prompt_windows_free(&w);
    prompt_free(&p);
}
#define EXPECT_WORDS(text, ...)                                                         \
    expect_words(text, (const int32_t[]){__VA_ARGS__},                                  \
                 sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_words_become_their_ids(void **state)
{
    struct prompt p;

    (void)state;
    EXPECT_WORDS("a my-cat dog", A, W0, W0 + 1, DOG);
    EXPECT_WORDS("a MY-Cat, dog", A, W0, W0 + 1, 267, DOG);
    EXPECT_WORDS("my dog", W0 + 2, DOG);
    EXPECT_WORDS("cat zo\xc3\xa9", CAT, W0 + 3);
    EXPECT_WORDS("(my:1.3)my", W0 + 2, W0 + 2);
    EXPECT_WORDS("a<dog>cat", A, W0 + 4, W0 + 5, W0 + 6, CAT); /* no letters at its ends */
    assert_int_equal(prompt_parse(&p, "an (easy) dog BREAK", 19), KRON_OK);
    assert_true(prompt_has_word(&p, "DOG"));
    assert_true(prompt_has_word(&p, "easy"));
    assert_false(prompt_has_word(&p, "eas"));
    assert_false(prompt_has_word(&p, "n"));
    assert_false(prompt_has_word(&p, ""));
    prompt_free(&p);
}

static void test_words_are_whole(void **state)
{
    static const char *const none[] = {"amy dog", "myth", "my2", "my_", "_my", "zo\xc3\xa9s",
                                       "\xc3\xa9my", "dog>", "zoe"};

    (void)state;
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        struct prompt p;
        struct prompt_windows plain, w;
        assert_int_equal(prompt_parse(&p, none[i], strlen(none[i])), KRON_OK);
        assert_int_equal(prompt_tokenize(&plain, tok, &p, NULL, 0), KRON_OK);
        assert_int_equal(prompt_tokenize(&w, tok, &p, words, sizeof words / sizeof *words),
                         KRON_OK);
        assert_int_equal(w.starts[1], plain.starts[1]);
        assert_memory_equal(w.ids, plain.ids, plain.starts[1] * sizeof *w.ids);
        prompt_windows_free(&plain);
        prompt_windows_free(&w);
        prompt_free(&p);
    }
}

/* A word's vectors stay together where one window has room for them. */
static void test_words_are_not_cut(void **state)
{
    static const struct prompt_word large[] = {{"big", W0, 3}, {"huge", W0 + 3, 80}};
    char text[1024] = "";
    struct prompt p;
    struct prompt_windows w;

    (void)state;
    for (int i = 0; i < 73; i++)
        strcat(text, "a ");
    strcat(text, "big cat");
    assert_int_equal(prompt_parse(&p, text, strlen(text)), KRON_OK);
    assert_int_equal(prompt_tokenize(&w, tok, &p, large, 2), KRON_OK);
    assert_int_equal(w.n, 2);
    assert_int_equal(w.starts[1], 73);
    assert_int_equal(w.starts[2], 77);
    assert_memory_equal(w.ids + 73, ((int32_t[]){W0, W0 + 1, W0 + 2, CAT}), 16);
    prompt_windows_free(&w);
    prompt_free(&p);
    assert_int_equal(prompt_parse(&p, "a huge", 6), KRON_OK);
    assert_int_equal(prompt_tokenize(&w, tok, &p, large, 2), KRON_OK);
    assert_int_equal(w.n, 2);
    assert_int_equal(w.starts[1], 75);
    assert_int_equal(w.starts[2], 81);
    assert_int_equal(w.ids[80], W0 + 82);
    prompt_windows_free(&w);
    prompt_free(&p);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    static const char text[] = "a (cat:1.5) <lora:x:lbw=ALL:1@0,0@1> BREAK \\(dog\\)";
    kron_status status = KRON_ERR_MEMORY;
    long k = 1;
    for (; status != KRON_OK; k++) {
        struct prompt p;
        struct prompt_windows w = {0};
        mem_fail_after(k);
        status = prompt_parse(&p, text, strlen(text));
        if (status == KRON_OK)
            status = prompt_tokenize(&w, tok, &p, NULL, 0);
        mem_fail_after(0);
        assert_true(status == KRON_OK || (status == KRON_ERR_MEMORY && w.ids == NULL));
        assert_true(status != KRON_OK || w.n == 2);
        prompt_windows_free(&w);
        prompt_free(&p);
    }
    assert_true(k > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_unbalanced_brackets),
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_break),
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_empty_prompt_is_one_window),
        cmocka_unit_test(test_weights_stand_at_their_ids),
        cmocka_unit_test(test_a_segment_ends_a_word),
        cmocka_unit_test(test_cut_after_75),
        cmocka_unit_test(test_break_fills_up_a_window),
        cmocka_unit_test(test_weights_may_be_left_out),
        cmocka_unit_test(test_words_become_their_ids),
        cmocka_unit_test(test_words_are_whole),
        cmocka_unit_test(test_words_are_not_cut),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
