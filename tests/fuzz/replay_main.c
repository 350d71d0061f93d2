/* SPDX-License-Identifier: MIT
 * A fuzz target without libFuzzer: replay_main FOLDER MUTATIONS calls it with every file of FOLDER
 * and with MUTATIONS changed copies of them, the same in every run. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    char *name;
    uint8_t *data;
    size_t size;
};

enum { MAX_INPUTS = 1024, MAX_SIZE = 1 << 20 };

static struct input inputs[MAX_INPUTS];
static int n_inputs;

static void fail(const char *what, const char *name)
{
    fprintf(stderr, "replay: %s: %s\n", name, what);
    exit(1);
}

static void *must_alloc(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    if (p == NULL)
        fail("out of memory", "input");
    return p;
}

static uint64_t next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void read_input(struct input *in, const char *folder, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        fail("cannot be read", path);
    in->name = strcpy(must_alloc(strlen(name) + 1), name);
    in->data = must_alloc(MAX_SIZE);
    in->size = fread(in->data, 1, MAX_SIZE, f);
    if (fgetc(f) != EOF)
        fail("over 1 MiB", path);
    fclose(f);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct input *)a)->name, ((const struct input *)b)->name);
}

/* The target gets a copy of exactly `size` bytes, so that a sanitizer sees a read past its end. */
static void call(const uint8_t *data, size_t size)
{
    uint8_t *copy = must_alloc(size);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

/* 1 to 8 changes: a bit, a byte, a cut, a run copied or put in from another input. */
static size_t mutate(uint8_t *data, size_t size, uint64_t *state)
{
    for (int n = 1 + (int)(next(state) % 8); n > 0; n--) {
        const struct input *other = &inputs[next(state) % (uint64_t)n_inputs];
        size_t at = size > 0 ? next(state) % size : 0, run = next(state) % 32;
        int kind = (int)(next(state) % 5);
        if (kind == 0 && size > 0) {
            data[at] ^= (uint8_t)(1u << next(state) % 8);
        } else if (kind == 1 && size > 0) {
            data[at] = (uint8_t)next(state);
        } else if (kind == 2 && next(state) % 4 == 0) {
            size = at;
        } else if (kind == 3 && at + 2 * run <= size) {
            memmove(data + at + run, data + at, run);
        } else if (kind == 4 && run < other->size && size + run <= MAX_SIZE) {
            size_t from = next(state) % (other->size - run);
            memmove(data + at + run, data + at, size - at);
            memcpy(data + at, other->data + from, run);
            size += run;
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s FOLDER MUTATIONS\n", argv[0]);
        return 2;
    }
    DIR *dir = opendir(argv[1]);
    if (dir == NULL)
        fail("no such folder", argv[1]);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        if (n_inputs == MAX_INPUTS)
            fail("too many files", argv[1]);
        read_input(&inputs[n_inputs++], argv[1], e->d_name);
    }
    closedir(dir);
    if (n_inputs == 0)
        fail("no files", argv[1]);
    qsort(inputs, (size_t)n_inputs, sizeof *inputs, by_name); /* readdir has no order */

    uint8_t *data = must_alloc(MAX_SIZE);
    int mutations = atoi(argv[2]);
    for (int i = 0; i < n_inputs; i++)
        call(inputs[i].data, inputs[i].size);
    for (int i = 0; i < mutations; i++) {
        uint64_t state = (uint64_t)i;
        const struct input *in = &inputs[i % n_inputs];
        memcpy(data, in->data, in->size);
        call(data, mutate(data, in->size, &state));
    }
    printf("%d files, %d changed copies\n", n_inputs, mutations);
    for (int i = 0; i < n_inputs; i++) {
        free(inputs[i].name);
        free(inputs[i].data);
    }
    free(data);
    return 0;
}
