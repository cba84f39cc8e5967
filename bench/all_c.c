/* The job in one C file, as fast as this machine does it: LSL pull -> band-pass -> abs -> exponential mean -> threshold -> one byte.
 * No guard, no limits, no recording. liblsl is opened by path (the one that pylsl brings), so its few prototypes are declared here.
 * usage: all_c LIBLSL NAME SOURCE_ID PIPE PRIORITY SMOOTH_STEP THRESHOLD SOS(12 numbers)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

enum { CHANNELS = 8, MAX_SAMPLES = 4096, SECTIONS = 2, HEAD = 8 };

typedef int32_t (*resolve_fn)(void **, uint32_t, const char *, int32_t, double);
typedef void *(*create_fn)(void *, int32_t, int32_t, int32_t);
typedef void (*open_fn)(void *, double, int32_t *);
typedef double (*pull_sample_fn)(void *, double *, int32_t, double, int32_t *);
typedef unsigned long (*pull_chunk_fn)(void *, double *, double *, unsigned long, unsigned long, double, int32_t *);

static double sos[SECTIONS][6], z[SECTIONS][CHANNELS][2], samples[MAX_SAMPLES * CHANNELS], stamps[MAX_SAMPLES];
static double step, threshold, mean;
static int above, pipe_fd;

static void take(const double *x)
{
    double sum = 0.0;
    for (int ch = 0; ch < CHANNELS; ch++) {
        double y = x[ch];
        for (int s = 0; s < SECTIONS; s++) {
            double w = y;
            y = sos[s][0] * w + z[s][ch][0];
            z[s][ch][0] = sos[s][1] * w - sos[s][4] * y + z[s][ch][1];
            z[s][ch][1] = sos[s][2] * w - sos[s][5] * y;
        }
        sum += fabs(y);
    }
    mean += step * (sum / CHANNELS - mean);
    int now_above = mean > threshold;
    if (now_above && !above && write(pipe_fd, "!", 1) != 1)
        exit(1);
    above = now_above;
}

static void *need(void *lib, const char *name)
{
    void *found = dlsym(lib, name);
    if (!found) {
        fprintf(stderr, "liblsl has no %s\n", name);
        exit(2);
    }
    return found;
}

int main(int argc, char **argv)
{
    if (argc != HEAD + SECTIONS * 6) {
        fprintf(stderr, "wrong number of arguments\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int priority = atoi(argv[5]);
    step = atof(argv[6]);
    threshold = atof(argv[7]);
    for (int i = 0; i < SECTIONS * 6; i++)
        sos[i / 6][i % 6] = atof(argv[HEAD + i]);
    /* before the inlet is made, so that liblsl's threads inherit it */
    struct sched_param param = {.sched_priority = priority};
    if (priority && sched_setscheduler(0, SCHED_FIFO, &param))
        perror("SCHED_FIFO");
    if (priority && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
        perror("mlockall");
    void *lib = dlopen(argv[1], RTLD_NOW);
    if (!lib) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    resolve_fn resolve = (resolve_fn)need(lib, "lsl_resolve_bypred");
    create_fn create = (create_fn)need(lib, "lsl_create_inlet");
    open_fn open_stream = (open_fn)need(lib, "lsl_open_stream");
    pull_sample_fn pull_sample = (pull_sample_fn)need(lib, "lsl_pull_sample_d");
    pull_chunk_fn pull_chunk = (pull_chunk_fn)need(lib, "lsl_pull_chunk_d");
    char query[512];
    snprintf(query, sizeof query, "name='%s' and source_id='%s'", argv[2], argv[3]);
    void *info;
    if (resolve(&info, 1, query, 1, 10.0) < 1) {
        fprintf(stderr, "no stream with %s\n", query);
        return 2;
    }
    void *inlet = create(info, 5, 0, 1);
    int32_t error = 0;
    open_stream(inlet, 10.0, &error);
    pipe_fd = open(argv[4], O_WRONLY);
    if (error || pipe_fd < 0) {
        fprintf(stderr, "cannot open the stream (%d) or the pipe\n", error);
        return 2;
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        if (pull_sample(inlet, samples, CHANNELS, 1.0, &error) == 0.0)
            continue;
        take(samples);
        unsigned long n = pull_chunk(inlet, samples, stamps, MAX_SAMPLES * CHANNELS, MAX_SAMPLES, 0.0, &error);
        for (unsigned long i = 0; i < n / CHANNELS; i++)
            take(samples + i * CHANNELS);
    }
}
