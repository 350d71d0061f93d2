/* SPDX-License-Identifier: MIT
 * Reading /sys/devices. */
#include "backend/cpu/topology.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4096 }; /* numbers of processors and of nodes */

/* A list of the system's, as in "0-3,8,10-11". */
struct number_set {
    unsigned char has[MOST];
};

static void set_range(struct number_set *s, long from, long to)
{
    for (long i = from; i <= to && i < MOST; i++)
        s->has[i] = 1;
}

static void parse_list(const char *p, struct number_set *s)
{
    while (*p >= '0' && *p <= '9') {
        char *end;
        long from = strtol(p, &end, 10), to = from;
        if (*end == '-')
            to = strtol(end + 1, &end, 10);
        set_range(s, from, to);
        p = *end == ',' ? end + 1 : end;
    }
}

/* The first line of root/name; false if there is no such file. */
static bool read_line(const char *root, const char *name, char *line, size_t size)
{
    char path[4096];

    if ((size_t)snprintf(path, sizeof path, "%s/%s", root, name) >= sizeof path)
        return false;
    FILE *f = fopen(path, "r");
    if (f == NULL)
        return false;
    bool got = fgets(line, (int)size, f) != NULL;
    fclose(f);
    return got;
}

static bool read_list(const char *root, const char *name, struct number_set *s)
{
    char line[8192];

    memset(s, 0, sizeof *s);
    if (!read_line(root, name, line, sizeof line))
        return false;
    parse_list(line, s);
    return true;
}

static long read_number(const char *root, const char *name, long other)
{
    char line[64], *end;

    if (!read_line(root, name, line, sizeof line))
        return other;
    long v = strtol(line, &end, 10);
    return end == line ? other : v;
}

/* Everything that is read at once. */
struct reader {
    const char *root;
    struct number_set online, nodes, list;
};

static void take_online(struct topology *t, struct reader *r, const int *allowed, int n)
{
    bool known = read_list(r->root, "system/cpu/online", &r->online);

    for (int i = 0; i < n; i++)
        if (!known || (allowed[i] < MOST && r->online.has[allowed[i]]))
            t->cpu[t->n++] = (struct topology_cpu){.id = allowed[i], .core = allowed[i]};
}

static void find_cores(struct topology *t, const struct reader *r)
{
    char name[96];

    for (int i = 0; i < t->n; i++) {
        struct topology_cpu *c = &t->cpu[i];
        snprintf(name, sizeof name, "system/cpu/cpu%d/topology/thread_siblings_list", c->id);
        c->core = (int)read_number(r->root, name, c->id);
        for (int j = 0; j < i; j++)
            c->sibling += t->cpu[j].core == c->core;
        t->cores += c->sibling == 0;
    }
}

static void find_nodes(struct topology *t, struct reader *r)
{
    char name[96];

    if (!read_list(r->root, "system/node/online", &r->nodes))
        return;
    for (int node = 0; node < MOST; node++) {
        snprintf(name, sizeof name, "system/node/node%d/cpulist", node);
        if (!r->nodes.has[node] || !read_list(r->root, name, &r->list))
            continue;
        for (int i = 0; i < t->n; i++)
            if (t->cpu[i].id < MOST && r->list.has[t->cpu[i].id])
                t->cpu[i].node = node;
    }
}

/* Intel names its small cores; others give each core's capacity, of which the best ones of a kind
 * may differ a little. */
static void find_slow(struct topology *t, struct reader *r)
{
    char name[96];
    long most = 0;

    if (read_list(r->root, "cpu_atom/cpus", &r->list))
        for (int i = 0; i < t->n; i++)
            t->cpu[i].slow = t->cpu[i].id < MOST && r->list.has[t->cpu[i].id];
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < t->n; i++) {
            snprintf(name, sizeof name, "system/cpu/cpu%d/cpu_capacity", t->cpu[i].id);
            long v = read_number(r->root, name, 0);
            if (pass == 0)
                most = v > most ? v : most;
            else if (v > 0 && v < most - most / 4)
                t->cpu[i].slow = true;
        }
}

static int compare(const void *a, const void *b)
{
    const struct topology_cpu *x = a, *y = b;

    if (x->sibling != y->sibling)
        return x->sibling < y->sibling ? -1 : 1;
    if (x->slow != y->slow)
        return y->slow ? -1 : 1;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int home_node(const struct topology *t, int home)
{
    for (int i = 0; i < t->n; i++)
        if (t->cpu[i].id == home)
            return t->cpu[i].node;
    return -1;
}

/* The home node sorts as the first of all. */
static void put_in_order(struct topology *t, int home)
{
    int node = home_node(t, home);

    for (int i = 0; i < t->n; i++)
        if (t->cpu[i].node == node)
            t->cpu[i].node -= MOST;
    if (t->n > 0)
        qsort(t->cpu, (size_t)t->n, sizeof *t->cpu, compare);
    for (int i = 0; i < t->n; i++)
        if (t->cpu[i].node < 0)
            t->cpu[i].node += MOST;
}

kron_status topology_read(struct topology *t, const char *root, const int *allowed, int n,
                          int home)
{
    void *p, *reader;

    memset(t, 0, sizeof *t);
    KRON_TRY(mem_alloc_n(&p, (size_t)n, sizeof *t->cpu, "a list of processors"));
    t->cpu = p;
    kron_status status = mem_alloc(&reader, sizeof(struct reader), "a list of processors");
    if (status != KRON_OK) {
        topology_free(t);
        return status;
    }
    struct reader *r = reader;
    r->root = root;
    take_online(t, r, allowed, n);
    find_cores(t, r);
    find_nodes(t, r);
    find_slow(t, r);
    put_in_order(t, home);
    mem_free(r);
    return KRON_OK;
}

void topology_free(struct topology *t)
{
    mem_free(t->cpu);
    memset(t, 0, sizeof *t);
}

bool topology_alike(const struct topology_cpu *a, const struct topology_cpu *b)
{
    return a->node == b->node && a->slow == b->slow;
}

bool topology_matters(const struct topology *t, int n)
{
    if (n > t->n)
        return false;
    for (int i = 1; i < t->n; i++)
        if (!topology_alike(&t->cpu[0], &t->cpu[i]))
            return true;
    return false;
}
