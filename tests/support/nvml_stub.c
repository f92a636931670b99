/* A stand-in for NVIDIA's libnvidia-ml.so.1 with two GPUs, for machines without one.

   What it does is read, at each call, from the file that NVML_STUB names. Lines:
     FUNCTION GPU RESULT      that call for that GPU (* is any of either) returns RESULT, an nvmlReturn_t; or it hangs
                              as long as the line is there (hang), or takes its process down (crash)
     process GPU PID BYTES    a process that computes there
   Signatures: nvidia-ml-py's calls; https://docs.nvidia.com/deploy/nvml-api. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPUS 2
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
typedef void *device;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process_info;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;

static int told(const char *function, int gpu) {
    for (;;) {
        char line[256], name[64], which[16], action[64];
        int result = SUCCESS, hangs = 0;
        const char *path = getenv("NVML_STUB");
        FILE *file = path ? fopen(path, "r") : NULL;
        while (file && fgets(line, sizeof line, file)) {
            if (sscanf(line, "%63s %15s %63s", name, which, action) != 3 || !strcmp(name, "process")) continue;
            if (strcmp(name, "*") && strcmp(name, function)) continue;
            if (strcmp(which, "*") && atoi(which) != gpu) continue;
            if (!strcmp(action, "hang")) hangs = 1;
            else if (!strcmp(action, "crash")) abort();
            else if (result == SUCCESS) result = atoi(action);
        }
        if (file) fclose(file);
        if (!hangs) return result;
        usleep(10000);
    }
}

#define CALL(gpu) do { int result = told(__func__, gpu); if (result) return result; } while (0)
#define INDEX(handle) ((int)(long)(handle) - 1)

int nvmlInitWithFlags(unsigned flags) { (void)flags; CALL(-1); return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) { (void)result; return "an error of the stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { CALL(-1); snprintf(text, size, "550.54.15"); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) { CALL(-1); *version = 12040; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { CALL(-1); *count = GPUS; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *handle) {
    CALL((int)index);
    if (index >= GPUS) return INVALID_ARGUMENT;
    *handle = (device)(long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(device handle, char *text, unsigned size) {
    CALL(INDEX(handle));
    snprintf(text, size, "Stub X%d", 100 * (INDEX(handle) + 1));
    return SUCCESS;
}

int nvmlDeviceGetUUID(device handle, char *text, unsigned size) {
    CALL(INDEX(handle));
    snprintf(text, size, "GPU-00000000-0000-0000-0000-00000000000%d", INDEX(handle));
    return SUCCESS;
}

/* There is no nvmlDeviceGetTemperatureV: older drivers have none. */
int nvmlDeviceGetTemperature(device handle, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    CALL(INDEX(handle));
    *celsius = 40 + INDEX(handle);
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device handle, unsigned *milliwatts) { CALL(INDEX(handle)); *milliwatts = 75500; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(device handle, unsigned *milliwatts) { CALL(INDEX(handle)); *milliwatts = 700000; return SUCCESS; }

int nvmlDeviceGetUtilizationRates(device handle, unsigned percents[2]) {
    CALL(INDEX(handle));
    percents[0] = 25;
    percents[1] = 5;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device handle, memory_v2 *info) {
    CALL(INDEX(handle));
    info->total = 80ull << 30;
    info->reserved = 1ull << 29;
    info->used = 3ull << 30;
    info->free = info->total - info->reserved - info->used;
    return SUCCESS;
}

/* The first GPU has no fan, as those of servers. */
int nvmlDeviceGetFanSpeed(device handle, unsigned *percent) {
    CALL(INDEX(handle));
    *percent = 30;
    return INDEX(handle) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPerformanceState(device handle, unsigned *state) { CALL(INDEX(handle)); *state = INDEX(handle) ? 8 : 0; return SUCCESS; }

int nvmlDeviceGetMigMode(device handle, unsigned *current, unsigned *pending) {
    CALL(INDEX(handle));
    *current = 0;
    *pending = INDEX(handle) ? 1 : 0;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device handle, unsigned *count, process_info *found) {
    CALL(INDEX(handle));
    unsigned listed = 0, room = *count, pid, gpu;
    unsigned long long bytes;
    char line[256];
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "process %u %u %llu", &gpu, &pid, &bytes) == 3 && (int)gpu == INDEX(handle)) {
            if (listed < room && found) {
                memset(&found[listed], 0, sizeof found[listed]);
                found[listed].pid = pid;
                found[listed].bytes = bytes;
            }
            listed++;
        }
    if (file) fclose(file);
    *count = listed;
    return listed > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device handle, unsigned *count, process_info *found) {
    (void)found;
    CALL(INDEX(handle));
    *count = 0;
    return SUCCESS;
}

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) {
    CALL(-1);
    if (pid == 1) return NOT_FOUND;
    snprintf(text, size, "/usr/bin/program-%u", pid);
    return SUCCESS;
}
