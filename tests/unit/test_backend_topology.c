/* SPDX-License-Identifier: MIT
 * Processors of made-up machines, as folders like /sys/devices, and the order in which workers take
 * them; what a run does to the affinity of its workers, and that it puts it back. */
#define _GNU_SOURCE /* sched_setaffinity */
#include "backend/cpu/places.h"
#include "backend/cpu/topology.h"
#include "temp_dir.h"
#include <omp.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* --- a machine --- */

static void put(const char *name, const char *text)
{
    char path[8192];

    snprintf(path, sizeof path, "%s", in_dir(name));
    for (char *p = path + strlen(dir) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        mkdir(path, 0700);
        *p = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "%s\n", text);
    fclose(f);
}

static void put_cpu(int cpu, const char *file, const char *text)
{
    char name[128];

    snprintf(name, sizeof name, "system/cpu/cpu%d/%s", cpu, file);
    put(name, text);
}

static int fresh(void **state)
{
    return make_dir(state);
}

/* The order for processors 0 .. n - 1, all of them allowed, as text. */
static const char *order(int n, int home)
{
    static char text[1024];
    int allowed[64];
    struct topology t;

    for (int i = 0; i < n; i++)
        allowed[i] = i;
    assert_int_equal(topology_read(&t, dir, allowed, n, home), KRON_OK);
    text[0] = '\0';
    for (int i = 0; i < t.n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i ? " " : "",
                 t.cpu[i].id);
    topology_free(&t);
    return text;
}

static struct topology machine(int n)
{
    int allowed[64];
    struct topology t;

    for (int i = 0; i < n; i++)
        allowed[i] = i;
    assert_int_equal(topology_read(&t, dir, allowed, n, -1), KRON_OK);
    return t;
}

/* --- orders --- */

static void without_files_all_are_equal_cores(void **state)
{
    struct topology t = machine(4);

    (void)state;
    assert_int_equal(t.n, 4);
    assert_int_equal(t.cores, 4);
    assert_false(topology_matters(&t, 4));
    assert_false(topology_matters(&t, 2));
    topology_free(&t);
    assert_string_equal(order(4, 2), "0 1 2 3");
}

static void siblings_come_after_all_cores(void **state)
{
    (void)state;
    put_cpu(0, "topology/thread_siblings_list", "0-1");
    put_cpu(1, "topology/thread_siblings_list", "0-1");
    put_cpu(2, "topology/thread_siblings_list", "2,5");
    put_cpu(5, "topology/thread_siblings_list", "2,5");
    struct topology t = machine(6);
    assert_int_equal(t.cores, 4);
    assert_false(topology_matters(&t, 4)); /* the system keeps siblings apart itself */
    topology_free(&t);
    assert_string_equal(order(6, -1), "0 2 3 4 1 5");
}

/* Processors of one core whose first hardware thread may not be used are still one core. */
static void a_core_counts_without_its_first_thread(void **state)
{
    const int allowed[] = {4, 7, 9};
    struct topology t;

    (void)state;
    put_cpu(4, "topology/thread_siblings_list", "1,4,7");
    put_cpu(7, "topology/thread_siblings_list", "1,4,7");
    assert_int_equal(topology_read(&t, dir, allowed, 3, -1), KRON_OK);
    assert_int_equal(t.cores, 2);
    assert_int_equal(t.cpu[0].id, 4);
    assert_int_equal(t.cpu[1].id, 9);
    assert_int_equal(t.cpu[2].id, 7);
    topology_free(&t);
}

static void put_two_nodes(void)
{
    put("system/node/online", "0,2");
    put("system/node/node0/cpulist", "0-1,4-5");
    put("system/node/node2/cpulist", "2-3,6-7");
    for (int i = 0; i < 8; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d,%d", i % 4, i % 4 + 4);
        put_cpu(i, "topology/thread_siblings_list", text);
    }
}

static void one_node_is_filled_before_the_next(void **state)
{
    (void)state;
    put_two_nodes();
    struct topology t = machine(8);
    assert_int_equal(t.cores, 4);
    assert_int_equal(t.cpu[0].node, 0);
    assert_int_equal(t.cpu[2].node, 2);
    assert_true(topology_matters(&t, 2));
    assert_true(topology_matters(&t, 8));
    assert_false(topology_matters(&t, 9)); /* more workers than processors */
    assert_true(topology_alike(&t.cpu[0], &t.cpu[1]));
    assert_false(topology_alike(&t.cpu[1], &t.cpu[2]));
    topology_free(&t);
    assert_string_equal(order(8, -1), "0 1 2 3 4 5 6 7");
}

static void the_callers_node_comes_first(void **state)
{
    (void)state;
    put_two_nodes();
    assert_string_equal(order(8, 6), "2 3 0 1 6 7 4 5");
    assert_string_equal(order(8, 99), "0 1 2 3 4 5 6 7");
}

static void fast_cores_come_first(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++)
        put_cpu(i, "cpu_capacity", i < 3 ? "446" : i < 5 ? "1024" : "900");
    struct topology t = machine(6);
    assert_true(topology_matters(&t, 2));
    assert_true(topology_alike(&t.cpu[0], &t.cpu[2])); /* 900 is of the fast kind too */
    topology_free(&t);
    assert_string_equal(order(6, -1), "3 4 5 0 1 2");
}

static void small_cores_that_have_a_name_come_last(void **state)
{
    (void)state;
    put("cpu_core/cpus", "2-5");
    put("cpu_atom/cpus", "0-1");
    put_cpu(2, "topology/thread_siblings_list", "2-3");
    put_cpu(3, "topology/thread_siblings_list", "2-3");
    put_cpu(4, "topology/thread_siblings_list", "4-5");
    put_cpu(5, "topology/thread_siblings_list", "4-5");
    assert_string_equal(order(6, -1), "2 4 0 1 3 5");
}

static void what_is_offline_is_left_out(void **state)
{
    (void)state;
    put("system/cpu/online", "0,2-3,9");
    assert_string_equal(order(6, -1), "0 2 3");
    put("system/cpu/online", "7");
    struct topology t = machine(4);
    assert_int_equal(t.n, 0);
    assert_int_equal(t.cores, 0);
    assert_false(topology_matters(&t, 1));
    topology_free(&t);
}

static void files_of_no_sense_are_as_none(void **state)
{
    (void)state;
    put_cpu(0, "topology/thread_siblings_list", "");
    put_cpu(1, "topology/thread_siblings_list", "x");
    put_cpu(1, "cpu_capacity", "-7");
    put("system/node/online", "0-99999999999999999999");
    put("system/node/node0/cpulist", "3-1,-");
    assert_string_equal(order(3, 0), "0 1 2");
}

static void memory_that_runs_out_is_an_error(void **state)
{
    const int allowed[] = {0, 1};
    struct topology t;

    (void)state;
    for (int n = 1; n <= 2; n++) {
        mem_fail_after(n);
        assert_int_equal(topology_read(&t, dir, allowed, 2, -1), KRON_ERR_MEMORY);
        mem_fail_after(0);
    }
}

/* --- this machine --- */

static void zero_threads_become_one_for_each_core(void **state)
{
    struct places *p = NULL;
    int n = 0, three = 3;

    (void)state;
    assert_int_equal(places_create("/sys/devices", &n, &p), KRON_OK);
    assert_in_range(n, 1, omp_get_num_procs());
    places_free(&p);
    assert_int_equal(places_create("/sys/devices", &three, &p), KRON_OK);
    assert_int_equal(three, 3);
    places_free(&p);
    assert_null(p);
}

/* Two processors of this process, told apart as two nodes; false if it has one only. */
static bool split_processors(int at[2])
{
    char text[16];
    cpu_set_t set;
    int n = 0;

    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    for (int i = 0; i < CPU_SETSIZE && n < 2; i++)
        if (CPU_ISSET(i, &set))
            at[n++] = i;
    put("system/node/online", "0-1");
    for (int i = 0; i < n; i++) {
        char name[64];
        snprintf(name, sizeof name, "system/node/node%d/cpulist", i);
        snprintf(text, sizeof text, "%d", at[i]);
        put(name, text);
    }
    return n == 2;
}

static void free_openmp(void)
{
    unsetenv("OMP_PROC_BIND");
    unsetenv("OMP_PLACES");
    unsetenv("GOMP_CPU_AFFINITY");
    unsetenv("KRON_CPU_BIND");
}

/* Where each of two workers may run. */
static void see_team(cpu_set_t set[2])
{
#pragma omp parallel num_threads(2)
    sched_getaffinity(0, sizeof *set, &set[omp_get_thread_num()]);
}

static void workers_are_bound_in_a_run_and_free_after_it(void **state)
{
    cpu_set_t before, team[2], both;
    struct places *p = NULL;
    int n = 2, at[2];

    (void)state;
    free_openmp();
    if (!split_processors(at))
        skip();
    assert_int_equal(places_create(dir, &n, &p), KRON_OK);
    assert_non_null(p);
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    bool bound = places_enter(p);
    assert_true(bound);
    see_team(team);
    CPU_AND(&both, &team[0], &team[1]);
    assert_int_equal(CPU_COUNT(&both), 0);
    assert_true(CPU_COUNT(&team[0]) < CPU_COUNT(&before));
    assert_false(places_enter(p)); /* not alone */
    places_leave(p, false);
    places_leave(p, bound);
    see_team(team);
    assert_true(CPU_EQUAL(&team[0], &before));
    assert_true(CPU_EQUAL(&team[1], &before));
    places_free(&p);
}

/* What the caller may no longer use is not given back to it. */
static void a_callers_own_limits_hold(void **state)
{
    cpu_set_t before, one, team[2];
    struct places *p = NULL;
    int n = 2, at[2];

    (void)state;
    free_openmp();
    if (!split_processors(at))
        skip();
    assert_int_equal(places_create(dir, &n, &p), KRON_OK);
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    CPU_SET(at[1], &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    bool bound = places_enter(p);
    see_team(team);
    places_leave(p, bound);
    assert_true(CPU_EQUAL(&team[0], &one));
    see_team(team);
    assert_true(CPU_EQUAL(&team[0], &one));
    sched_setaffinity(0, sizeof before, &before);
    places_free(&p);
}

static void users_of_openmp_and_of_the_library_can_refuse(void **state)
{
    static const char *const names[] = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"};
    struct places *p = NULL;
    int n = 2, at[2];

    (void)state;
    free_openmp();
    if (!split_processors(at))
        skip();
    for (int i = 0; i < 4; i++) {
        setenv(i < 3 ? names[i] : "KRON_CPU_BIND", i < 3 ? "true" : "none", 1);
        assert_int_equal(places_create(dir, &n, &p), KRON_OK);
        assert_null(p);
        free_openmp();
    }
    assert_int_equal(places_create(dir, &n, &p), KRON_OK);
    assert_non_null(p);
    places_free(&p);
}

/* The memory stays usable where the system has no such nodes. */
static void memory_is_spread_if_the_system_can(void **state)
{
    struct places *p = NULL;
    int n = 2, at[2];
    void *m;

    (void)state;
    free_openmp();
    if (!split_processors(at))
        skip();
    assert_int_equal(places_create(dir, &n, &p), KRON_OK);
    assert_int_equal(mem_alloc_raw(&m, 1 << 20, "a test"), KRON_OK);
    places_spread(p, m, 1 << 20);
    places_spread(NULL, m, 1 << 20);
    memset(m, 1, 1 << 20);
    mem_free(m);
    places_free(&p);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, fresh, remove_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(without_files_all_are_equal_cores),
        IN_DIR(siblings_come_after_all_cores),
        IN_DIR(a_core_counts_without_its_first_thread),
        IN_DIR(one_node_is_filled_before_the_next),
        IN_DIR(the_callers_node_comes_first),
        IN_DIR(fast_cores_come_first),
        IN_DIR(small_cores_that_have_a_name_come_last),
        IN_DIR(what_is_offline_is_left_out),
        IN_DIR(files_of_no_sense_are_as_none),
        IN_DIR(memory_that_runs_out_is_an_error),
        cmocka_unit_test(zero_threads_become_one_for_each_core),
        IN_DIR(workers_are_bound_in_a_run_and_free_after_it),
        IN_DIR(a_callers_own_limits_hold),
        IN_DIR(users_of_openmp_and_of_the_library_can_refuse),
        IN_DIR(memory_is_spread_if_the_system_can),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
