/* SPDX-License-Identifier: MIT
 * What torch.save() wrote (tools/make_file_samples.py), in both layouts, and files that are cut,
 * lie, or want something called. */
#include "file/file.h"
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#define SAMPLES KRON_SOURCE_DIR "/tests/fuzz/corpus/torch/"

static kron_status open_sample(const char *name, struct st_file **f)
{
    char path[4096];

    snprintf(path, sizeof path, SAMPLES "%s", name);
    return st_open(f, path);
}

/* Opens a copy of exactly n bytes, so that AddressSanitizer sees a step too far. */
static kron_status open_bytes(const void *data, size_t n)
{
    struct st_file *f;
    void *copy;

    assert_int_equal(mem_alloc(&copy, n, "a file"), KRON_OK);
    if (n > 0)
        memcpy(copy, data, n);
    kron_status status = st_open_memory(&f, copy, n, "test.pt");
    st_close(&f);
    mem_free(copy);
    return status;
}

static void expect_error(kron_status got, kron_status want, const char *text)
{
    const char *detail = kron_error_detail();

    if (got != want || strstr(detail, text) == NULL)
        fail_msg("status %d, '%s'; expected %d and '%s'", got, got ? detail : "", want, text);
}

struct want {
    const char *name, *shape;
    enum dtype type;
    float v[8];
};

static void expect_tensors(const char *sample, const struct want *want, size_t n)
{
    struct st_file *f;

    if (open_sample(sample, &f) != KRON_OK)
        fail_msg("%s", kron_error_detail());
    assert_int_equal(st_count(f), n);
    assert_int_equal(st_meta_count(f), 0);
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = st_find(f, want[i].name);
        char text[64];
        float v[8];
        assert_non_null(t);
        assert_ptr_equal(t, st_at(f, (int64_t)i));
        assert_int_equal(t->type, want[i].type);
        assert_string_equal(tensor_shape_text(t, text, sizeof text), want[i].shape);
        assert_int_equal(t->bytes, dtype_bytes(t->type, tensor_elements(t)));
        tensor_decode(t, 0, tensor_elements(t), v);
        for (int64_t k = 0; k < tensor_elements(t); k++)
            if (v[k] != want[i].v[k])
                fail_msg("%s: %s[%lld] is %g", sample, t->name, (long long)k, (double)v[k]);
    }
    st_close(&f);
}

static void every_layout_holds_the_tensors(void **state)
{
    static const char *const samples[] = {"zip",      "older", "protocol_4", "lightning",
                                          "repacked", "zip64"};
    static const struct want want[] = {
        {"a.weight", "[2, 3]", DT_F32, {0, 1, 2, 3, 4, 5}},
        {"b.half", "[4]", DT_F16, {0, 1, 2, 3}},
        {"c.bf16", "[1, 4, 1, 1]", DT_BF16, {0, 1, 2, 3}},
        {"d.rows", "[1, 3]", DT_F32, {3, 4, 5}},                /* within the storage of a.weight */
        {"e.turned", "[3, 2]", DT_F32, {0, 3, 1, 4, 2, 5}},     /* a copy: strides 1, 3 */
        {"f.parameter", "[2]", DT_F32, {1, 1}},
        {"g.scalar", "[]", DT_F32, {0.5f}},
        {"h.long", "[2]", DT_I64, {1, -1}},
        {"i.empty", "[0, 3]", DT_F32, {0}},
        {"j.double", "[1]", DT_F64, {0.25f}},
        {"k.bytes", "[2]", DT_U8, {1, 255}},
        {"l.flags", "[2]", DT_BOOL, {1, 0}},
        {"m.last", "[1, 2, 2, 2]", DT_F32, {0, 1, 2, 3, 4, 5, 6, 7}}, /* channels last */
    };

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++)
        expect_tensors(samples[i], want, sizeof want / sizeof *want);
}

static void newer_types_have_a_call_of_their_own(void **state)
{
    static const struct want want[] = {{"x", "[3]", DT_F8_E4M3, {1, 1, 1}},
                                       {"y", "[3]", DT_F8_E5M2, {1, 1, 1}}};

    (void)state;
    expect_tensors("float8", want, 2);
}

static void embeddings_are_found(void **state)
{
    static const struct want want[] = {{"*", "[2, 4]", DT_F32, {0, 1, 2, 3, 4, 5, 6, 7}}};

    (void)state;
    expect_tensors("embedding", want, 1);
    expect_tensors("embedding_module", want, 1);
}

static void views_are_not_copied(void **state)
{
    struct st_file *f;

    (void)state;
    assert_int_equal(open_sample("zip", &f), KRON_OK);
    const char *a = st_find(f, "a.weight")->data, *rows = st_find(f, "d.rows")->data;
    assert_int_equal(rows - a, 3 * sizeof(float));
    assert_int_equal((uintptr_t)a % 64, 0); /* as torch places them */
    st_close(&f);
}

static void what_is_not_read_is_named(void **state)
{
    static const struct {
        const char *sample, *want;
        kron_status status;
    } cases[] = {
        {"evil", "evil: a pickle that calls posix.system: only", KRON_ERR_UNSUPPORTED},
        {"evil_older", "a pickle that calls __builtin__.eval", KRON_ERR_UNSUPPORTED},
        {"whole_module", "calls torch.nn.modules.linear.Linear", KRON_ERR_UNSUPPORTED},
        {"complex", "tensor 'z': unknown type torch.ComplexFloatStorage", KRON_ERR_UNSUPPORTED},
        {"deflated", "'archive/data.pkl' in it is packed", KRON_ERR_UNSUPPORTED},
        {"no_pickle", "a zip archive without data.pkl", KRON_ERR_UNSUPPORTED},
        {"no_storage", "tensor 'a.weight': its storage is not in the file", KRON_ERR_FORMAT},
        {"list", "list: a pickle without a dictionary of tensors", KRON_ERR_FORMAT},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct st_file *f;
        expect_error(open_sample(cases[i].sample, &f), cases[i].status, cases[i].want);
        assert_null(f);
    }
}

static void files_that_are_cut(void **state)
{
    static const char *const samples[] = {"zip", "older", "zip64"};

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        char path[4096], *data;
        size_t n;
        snprintf(path, sizeof path, SAMPLES "%s", samples[i]);
        assert_int_equal(file_read(&data, &n, path, 1 << 20), KRON_OK);
        for (size_t cut = 15; cut < n; cut++)
            expect_error(open_bytes(data, cut), KRON_ERR_FORMAT, "truncated");
        assert_int_equal(open_bytes(data, n), KRON_OK);
        mem_free(data);
    }
}

/* --- pickles by hand, in the older layout: number, version, system, dictionary, storages --- */

#define NUMBER "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#define BEFORE NUMBER "\x80\x02M\xe9\x03." "\x80\x02}."
/* A storage of four floats called "s", and a tensor of them but for its shape and strides. */
#define STORAGE "(U\x07storagectorch\nFloatStorage\nU\x01sU\x03" "cpuK\x04NtQ"
#define TENSOR(key, rest) "U\x01" key "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE rest "\x89NtRs"
#define KEYS "]U\x01sa."
#define DATA "\4\0\0\0\0\0\0\0" "\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40"
#define FILE_OF(dictionary) BEFORE "}" dictionary "." KEYS DATA
#define NO_STORAGES_OF(dictionary) BEFORE "}" dictionary "." "]."

static void pickles_that_lie(void **state)
{
#define CASE(bytes, status, want) {bytes, sizeof(bytes) - 1, status, want}
    static const struct {
        const char *bytes;
        size_t n;
        kron_status status;
        const char *want;
    } cases[] = {
        CASE(FILE_OF(TENSOR("a", "K\x00K\x04\x85K\x01\x85")), KRON_OK, ""),
        CASE(FILE_OF(TENSOR("a", "K\x01K\x03\x85K\x01\x85")), KRON_OK, ""),
        CASE(FILE_OF(TENSOR("a", "K\x01K\x04\x85K\x01\x85")), KRON_ERR_FORMAT,
             "tensor 'a' of 4 elements up to number 4 has a storage of 16 bytes"),
        CASE(FILE_OF(TENSOR("a", "K\x00K\x02\x85K\x04\x85")), KRON_ERR_FORMAT, "up to number 4"),
        CASE(FILE_OF(TENSOR("a", "K\x00K\x05\x85K\x00\x85")), KRON_ERR_FORMAT, "of 5 elements"),
        CASE(FILE_OF(TENSOR("a", "J\xff\xff\xff\xffK\x01\x85K\x01\x85")), KRON_ERR_FORMAT,
             "tensor 'a': expected a place"),
        CASE(FILE_OF(TENSOR("a", "K\x00J\xff\xff\xff\xff\x85K\x01\x85")), KRON_ERR_FORMAT,
             "tensor 'a': shape holds a number"),
        CASE(FILE_OF(TENSOR("a", "K\x00\x8a\x02\xfe\xff\x85K\x01\x85")), KRON_ERR_FORMAT,
             "tensor 'a': shape holds a number"),
        CASE(FILE_OF(TENSOR("a", "K\x00K\x02\x85J\xff\xff\xff\xff\x85")), KRON_ERR_FORMAT,
             "tensor 'a': a stride is negative"),
        CASE(FILE_OF(TENSOR("a", "K\x00K\x02\x85)")), KRON_ERR_FORMAT, "as many strides as axes"),
        CASE(FILE_OF(TENSOR("a", "K\x00U\x01x\x85K\x01\x85")), KRON_ERR_FORMAT, "shape holds"),
        CASE(FILE_OF(TENSOR("a", "K\x00\x8a\x08\0\0\0\0\0\0\0\x7f\x8a\x08\0\0\0\0\0\0\0\x7f\x86"
                                 "K\x01K\x01\x86")), KRON_ERR_FORMAT, "shape holds"),
        CASE(FILE_OF(TENSOR("a", "K\x00K\x02\x85\x8a\x08\0\0\0\0\0\0\0\x7f\x85")),
             KRON_ERR_FORMAT, "up to number 9151314442816847872"),
        CASE(FILE_OF(TENSOR("\0", "K\x00K\x04\x85K\x01\x85")), KRON_ERR_FORMAT, "has a NUL"),
        CASE(FILE_OF(TENSOR("a", "K\x00K\x04\x85K\x01\x85") TENSOR("a", "K\x00)" ")")),
             KRON_ERR_FORMAT, "tensor 'a': the name is there twice"),
        CASE(NO_STORAGES_OF("K\x01Ns"), KRON_ERR_FORMAT, "without a dictionary of tensors"),
        CASE(FILE_OF("K\x01" "cos\nsystem\nU\x02ls\x85Rs"), KRON_ERR_UNSUPPORTED,
             "calls os.system"),
        CASE(FILE_OF("K\x01U\x02osU\x06system\x93)\x81s"), KRON_ERR_UNSUPPORTED,
             "calls os.system"),
        CASE(FILE_OF("K\x01N)Rs"), KRON_ERR_FORMAT, "a call of what is no function"),
        CASE(FILE_OF("K\x01" "ctorch._utils\n_rebuild_parameter\n)Rs"), KRON_ERR_FORMAT,
             "a call without arguments"),
        CASE(FILE_OF("K\x01s"), KRON_ERR_FORMAT, "its stack is empty"),
        CASE(FILE_OF("(K\x01u"), KRON_ERR_FORMAT, "a key without a value"),
        CASE(FILE_OF("u"), KRON_ERR_FORMAT, "a mark is missing"),
        CASE(NO_STORAGES_OF("NNs"), KRON_ERR_FORMAT, "without a dictionary of tensors"),
        CASE(FILE_OF("((\x85"), KRON_ERR_FORMAT, "a mark within a tuple"),
        CASE(FILE_OF("((Ns"), KRON_ERR_FORMAT, "its stack is empty"),
        CASE(FILE_OF("NNNs"), KRON_ERR_FORMAT, "added to what is no container"),
        CASE(FILE_OF("h\x05"), KRON_ERR_FORMAT, "was not remembered"),
        CASE(FILE_OF("r\xff\xff\xff\xff"), KRON_ERR_FORMAT, "more values to remember"),
        CASE(FILE_OF("NQ"), KRON_ERR_FORMAT, "a reference that is no tuple"),
        CASE(FILE_OF("K\x01)Qs"), KRON_ERR_FORMAT, "refers to what is no storage"),
        CASE(FILE_OF("K\x01Nb"), KRON_ERR_FORMAT, "state for what is no object"),
        CASE(FILE_OF("\xff"), KRON_ERR_UNSUPPORTED, "opcode 0xff"),
        CASE(FILE_OF("X\xff\xff\xff\x7f"), KRON_ERR_FORMAT, "longer than the file"),
        CASE(BEFORE "}" TENSOR("a", "K\x00K\x04\x85K\x01\x85") "." "]U\x01ta." DATA,
             KRON_ERR_FORMAT, "nothing refers to storage 't'"),
        CASE(BEFORE "}" TENSOR("a", "K\x00K\x04\x85K\x01\x85") "." "]." DATA, KRON_ERR_FORMAT,
             "its storage is not in the file"),
        CASE(BEFORE "}" TENSOR("a", "K\x00K\x04\x85K\x01\x85") "." KEYS "\5" DATA,
             KRON_ERR_FORMAT, "storage 's' has 1029 elements, expected 4"),
        CASE(BEFORE "}" TENSOR("a", "K\x00K\x04\x85K\x01\x85") "." "N." DATA, KRON_ERR_FORMAT,
             "the list of its storages is missing"),
        CASE(NUMBER "\x80\x02M\xe9\x03." "}U\x0dlittle_endian\x89s." "}." KEYS DATA,
             KRON_ERR_UNSUPPORTED, "big-endian"),
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kron_status status = open_bytes(cases[i].bytes, cases[i].n);
        if (cases[i].status != KRON_OK)
            expect_error(status, cases[i].status, cases[i].want);
        else if (status != KRON_OK)
            fail_msg("case %zu: %s", i, kron_error_detail());
    }
}

/* Many tensors that are not row-major may share one storage: their copies are limited. Here each
 * is of 1 KB and costs 32 bytes of the file. */
static void copies_stay_small(void **state)
{
    static const char head[] = BEFORE "}" "U\x01" "Actorch._utils\n_rebuild_tensor_v2\nq\x00("
        "(U\x07storagectorch\nFloatStorage\nU\x01sU\x03" "cpuM\x00\x01NtQq\x01"
        "K\x00K\x10K\x10\x86K\x01K\x10\x86\x89NtRs";
    static const char one[] = "U\x01" "ah\x00(h\x01K\x00K\x10K\x10\x86K\x01K\x10\x86\x89NtRs";
    static const char tail[] = "." KEYS "\x00\x01\0\0\0\0\0\0";

    (void)state;
    for (int tensors = 1; tensors <= 16; tensors += 15) {
        char file[4096] = {0};
        size_t n = sizeof head - 1;
        memcpy(file, head, n);
        for (int i = 1; i < tensors; i++, n += sizeof one - 1) {
            memcpy(file + n, one, sizeof one - 1);
            file[n + 2] = (char)('a' + i);
        }
        memcpy(file + n, tail, sizeof tail - 1);
        n += sizeof tail - 1 + 1024;
        if (tensors == 1)
            assert_int_equal(open_bytes(file, n), KRON_OK);
        else
            expect_error(open_bytes(file, n), KRON_ERR_FORMAT, "not row-major need more than");
    }
}

static void no_memory_is_an_error(void **state)
{
    static const char *const samples[] = {"zip", "older"};

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        int failures = 0;
        for (long n = 1;; n++, failures++) {
            struct st_file *f;
            mem_fail_after(n);
            kron_status status = open_sample(samples[i], &f);
            mem_fail_after(0);
            st_close(&f);
            if (status == KRON_OK)
                break;
            assert_int_equal(status, KRON_ERR_MEMORY);
        }
        assert_true(failures > 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_holds_the_tensors),
        cmocka_unit_test(newer_types_have_a_call_of_their_own),
        cmocka_unit_test(embeddings_are_found),
        cmocka_unit_test(views_are_not_copied),
        cmocka_unit_test(what_is_not_read_is_named),
        cmocka_unit_test(files_that_are_cut),
        cmocka_unit_test(pickles_that_lie),
        cmocka_unit_test(copies_stay_small),
        cmocka_unit_test(no_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
