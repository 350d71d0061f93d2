/* SPDX-License-Identifier: MIT
 * What was measured, as a table with ratios first, as CSV and as JSON. */
#define _POSIX_C_SOURCE 200809L
#include "bench.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void processor_name(char out[128])
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, 128, "unknown processor");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':') != NULL) {
            snprintf(out, 128, "%.120s", strchr(line, ':') + 2);
            out[strcspn(out, "\n\"\\")] = '\0';
            break;
        }
    if (f != NULL)
        fclose(f);
}

static void date_now(char out[32])
{
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(out, 32, "%Y-%m-%d %H:%M UTC", &utc);
}

static int threads_of(const struct setup *setup)
{
    return setup->threads > 0 ? setup->threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static double megabytes(double bytes)
{
    return bytes / 1e6;
}

static double ratio_of(const struct result *r)
{
    return r->plain_call.median > 0 ? r->call.median / r->plain_call.median : 0;
}

void report_head(const struct setup *setup)
{
    char name[128], date[32];
    processor_name(name);
    date_now(date);
    printf("Kron %s, %s, %d threads, %s\n", kron_version(), name, threads_of(setup), date);
    printf("ratio: a UNet call with the adapters to one without, in turns; seconds; MB = 10^6 bytes\n"
           "%-5s %-9s %-17s %6s %8s %8s %7s %6s %7s %7s %7s  %6s %6s %6s %6s %6s %6s  %6s %6s %5s\n", "model",
           "size", "case", "ratio", "call", "plain", "guided", "text", "decode", "start", "first",
           "MB txt", "unet", "+kept", "unet2", "+kept", "vae", "peak", "anon", "load");
}

void report_case(const struct result *r)
{
    char size[24];
    snprintf(size, sizeof size, "%dx%d", r->width, r->height);
    printf("%-5s %-9s %-17s %6.3f %8.3f %8.3f %7.2f %6.3f %7.2f %7.2f %7.2f  %6.1f %6.1f %6.1f %6.1f %6.1f "
           "%6.1f  %6.0f %6.0f %5.2f\n", bench_arch_name(r->arch), size, r->what.name, ratio_of(r),
           r->call.median, r->plain_call.median, r->guided.median, r->text, r->decode, r->start,
           r->first_step, megabytes((double)r->buffers.text_encoder),
           megabytes((double)r->buffers.unet), megabytes((double)r->buffers.unet_kept),
           megabytes((double)r->guided_unet), megabytes((double)r->guided_kept),
           megabytes((double)r->buffers.vae), megabytes((double)r->peak),
           megabytes((double)r->peak_anonymous), r->load);
}

/* --- files --- */

/* The numbers of a row, in one list for both kinds of file. */
enum { N_FIELDS = 23 };
struct field {
    const char *name;
    double value;
};

static void fields_of(const struct result *r, struct field out[N_FIELDS])
{
    struct field f[N_FIELDS] = {
        {"ratio", ratio_of(r)},
        {"unet_call_s", r->call.median},
        {"unet_call_least_s", r->call.least},
        {"plain_call_s", r->plain_call.median},
        {"calls", r->call.n},
        {"guided_step_s", r->guided.median},
        {"text_first_s", r->first_text},
        {"text_s", r->text},
        {"vae_decode_s", r->decode},
        {"open_s", r->open},
        {"adapters_s", r->adapters},
        {"start_s", r->start},
        {"first_step_s", r->first_step},
        {"text_buffer_mb", megabytes((double)r->buffers.text_encoder)},
        {"unet_buffer_mb", megabytes((double)r->buffers.unet)},
        {"unet_kept_mb", megabytes((double)r->buffers.unet_kept)},
        {"unet_guided_buffer_mb", megabytes((double)r->guided_unet)},
        {"unet_guided_kept_mb", megabytes((double)r->guided_kept)},
        {"vae_buffer_mb", megabytes((double)r->buffers.vae)},
        {"peak_rss_mb", megabytes((double)r->peak)},
        {"peak_anonymous_mb", megabytes((double)r->peak_anonymous)},
        {"load_average", r->load},
        {"adapters", r->what.n_adapters},
    };
    memcpy(out, f, sizeof f);
}

static bool close_file(FILE *f, const char *path)
{
    bool failed = ferror(f) != 0;
    if (fclose(f) != 0 || failed)
        return complain("%s: cannot be written: %s", path, strerror(errno));
    return true;
}

bool report_csv(const char *path, const struct result *r, int n, const struct setup *setup)
{
    struct field fields[N_FIELDS];
    char name[128], date[32];
    FILE *f = fopen(path, "w");
    if (f == NULL)
        return complain("%s: cannot be written: %s", path, strerror(errno));
    processor_name(name);
    date_now(date);
    for (int i = 0; i < n; i++) {
        fields_of(&r[i], fields);
        if (i == 0) {
            fputs("machine,threads,date,model,width,height,case", f);
            for (int k = 0; k < N_FIELDS; k++)
                fprintf(f, ",%s", fields[k].name);
            fputc('\n', f);
        }
        fprintf(f, "\"%s\",%d,%s,%s,%d,%d,%s", name, threads_of(setup), date,
                bench_arch_name(r[i].arch), r[i].width, r[i].height, r[i].what.name);
        for (int k = 0; k < N_FIELDS; k++)
            fprintf(f, ",%.6g", fields[k].value);
        fputc('\n', f);
    }
    return close_file(f, path);
}

bool report_json(const char *path, const struct result *r, int n, const struct setup *setup)
{
    struct field fields[N_FIELDS];
    char name[128], date[32];
    FILE *f = fopen(path, "w");
    if (f == NULL)
        return complain("%s: cannot be written: %s", path, strerror(errno));
    processor_name(name);
    date_now(date);
    fprintf(f, "{\"machine\": \"%s\", \"threads\": %d, \"date\": \"%s\", \"kron\": \"%s\", \"cases\": [",
            name, threads_of(setup), date, kron_version());
    for (int i = 0; i < n; i++) {
        fields_of(&r[i], fields);
        fprintf(f, "%s\n {\"model\": \"%s\", \"width\": %d, \"height\": %d, \"case\": \"%s\"",
                i > 0 ? "," : "", bench_arch_name(r[i].arch), r[i].width, r[i].height,
                r[i].what.name);
        for (int k = 0; k < N_FIELDS; k++)
            fprintf(f, ", \"%s\": %.6g", fields[k].name, fields[k].value);
        fputc('}', f);
    }
    fputs("\n]}\n", f);
    return close_file(f, path);
}
