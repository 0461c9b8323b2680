/* Stands in for the CUDA driver library where there is none: memory is malloc's, streams queue and do nothing until
   they are waited for, and every rule that a caller can break is checked (no context, a foreign pointer, a wait within
   a capture). What it is told by the environment: FAKE_GPU_NAME, FAKE_GPU_COUNT, FAKE_GPU_MEMORY, FAKE_GPU_CC,
   FAKE_CUDA_VERSION. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_INVALIDATED = 901 };
enum { CONTEXT, DEVICE_MEMORY, HOST_MEMORY, STREAM, EVENT, GRAPH, EXEC, KINDS };
enum { COPY, CALL, RECORD };

typedef void (*HostFn)(void *);
typedef struct { int kind; void *to; const void *from; size_t size; HostFn call; void *user; } Op;
typedef struct { Op *ops; int count; } List;
typedef struct Block { char *start; size_t size; int host; struct Block *next; } Block;
typedef struct { List queue, captured; int capturing, broken; } Stream;
typedef struct { double ms; int recorded; Stream *stream; } Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static int live[KINDS], ready, retained;
static size_t used;
static char failing[64];
static int failing_code;
static __thread int depth;     /* of the context stack of this thread */
static __thread int capturing; /* streams that this thread captures */

#define API __attribute__((visibility("default")))
#define ENTER(name) do { if (!ready) return NOT_INITIALIZED; int code = injected(name); if (code) return code; } while (0)
#define CURRENT(name) do { ENTER(name); if (!depth) return INVALID_CONTEXT; } while (0)

static int injected(const char *name) {
    if (strcmp(name, failing)) return OK;
    failing[0] = 0;
    return failing_code;
}
static long setting(const char *name, long otherwise) { const char *s = getenv(name); return s ? atol(s) : otherwise; }
static void count(int kind, int by) { pthread_mutex_lock(&lock); live[kind] += by; pthread_mutex_unlock(&lock); }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }

/* what a test asks for */
API int fakeLive(int kind) { return live[kind]; }
API void fakeFail(const char *name, int code) { snprintf(failing, sizeof failing, "%s", name); failing_code = code; }

API int cuInit(unsigned flags) {
    if (setting("FAKE_GPU_COUNT", 1) < 0) return NO_DEVICE;
    ready = 1;
    return flags ? INVALID_VALUE : OK;
}
API int cuDriverGetVersion(int *version) { *version = setting("FAKE_CUDA_VERSION", 12060); return OK; }
API int cuGetErrorName(int code, const char **name) {
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
        : code == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
        : code == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
        : code == CAPTURE_INVALIDATED ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" : NULL;
    return *name ? OK : INVALID_VALUE;
}
API int cuGetErrorString(int code, const char **text) { *text = code == OUT_OF_MEMORY ? "out of memory" : "as the fake says"; return OK; }

API int cuDeviceGetCount(int *n) { ENTER("cuDeviceGetCount"); *n = setting("FAKE_GPU_COUNT", 1); return OK; }
API int cuDeviceGet(int *device, int ordinal) { ENTER("cuDeviceGet"); *device = ordinal + 7; return OK; } /* a handle is no ordinal */
API int cuDeviceGetName(char *name, int size, int device) {
    ENTER("cuDeviceGetName");
    const char *own = getenv("FAKE_GPU_NAME");
    snprintf(name, size, "%s", own ? own : "Fake GPU");
    return device < 7 ? INVALID_DEVICE : OK;
}
API int cuDeviceGetAttribute(int *value, int which, int device) {
    ENTER("cuDeviceGetAttribute");
    int cc = setting("FAKE_GPU_CC", 87);
    *value = which == 75 ? cc / 10 : which == 76 ? cc % 10 : which == 18 ? 1 : -1;
    return device < 7 || *value < 0 ? INVALID_VALUE : OK;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER("cuDevicePrimaryCtxRetain");
    if (device < 7) return INVALID_DEVICE;
    *context = &retained;
    count(CONTEXT, 1);
    return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int device) { ENTER("cuDevicePrimaryCtxRelease_v2"); if (device < 7) return INVALID_DEVICE; count(CONTEXT, -1); return OK; }
API int cuCtxPushCurrent_v2(void *context) {
    ENTER("cuCtxPushCurrent_v2");
    if (context != &retained || !live[CONTEXT]) return INVALID_CONTEXT;
    depth++;
    return OK;
}
API int cuCtxPopCurrent_v2(void **context) { CURRENT("cuCtxPopCurrent_v2"); *context = &retained; depth--; return OK; }

static int allocate(size_t size, int host, void **address) {
    if (!size) return INVALID_VALUE;
    if (capturing) return CAPTURE_UNSUPPORTED;
    pthread_mutex_lock(&lock);
    int code = OK;
    if (!host && used + size > (size_t)setting("FAKE_GPU_MEMORY", 1L << 30)) code = OUT_OF_MEMORY;
    else {
        Block *block = malloc(sizeof *block);
        *block = (Block){malloc(size), size, host, blocks};
        memset(block->start, 0xA5, size); /* nothing is zero by itself */
        blocks = block;
        if (!host) used += size;
        live[host ? HOST_MEMORY : DEVICE_MEMORY]++;
        *address = block->start;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
static int release(void *address, int host) {
    int code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (Block **at = &blocks; *at; at = &(*at)->next)
        if ((*at)->start == address && (*at)->host == host) {
            Block *block = *at;
            *at = block->next;
            if (!host) used -= block->size;
            live[host ? HOST_MEMORY : DEVICE_MEMORY]--;
            free(block->start);
            free(block);
            code = OK;
            break;
        }
    pthread_mutex_unlock(&lock);
    return code;
}
static int inside(const void *address, size_t size, int host) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (Block *b = blocks; b && !found; b = b->next)
        found = b->host == host && (char *)address >= b->start && (char *)address + size <= b->start + b->size;
    pthread_mutex_unlock(&lock);
    return found;
}
API int cuMemGetInfo_v2(size_t *left, size_t *total) {
    CURRENT("cuMemGetInfo_v2");
    *total = setting("FAKE_GPU_MEMORY", 1L << 30);
    *left = *total - used;
    return OK;
}
API int cuMemAlloc_v2(uint64_t *address, size_t size) { CURRENT("cuMemAlloc_v2"); return allocate(size, 0, (void **)address); }
API int cuMemFree_v2(uint64_t address) { CURRENT("cuMemFree_v2"); return release((void *)address, 0); }
API int cuMemHostAlloc(void **address, size_t size, unsigned flags) { CURRENT("cuMemHostAlloc"); (void)flags; return allocate(size, 1, address); }
API int cuMemFreeHost(void *address) { CURRENT("cuMemFreeHost"); return release(address, 1); }

static void append(List *list, Op op) {
    list->ops = realloc(list->ops, (list->count + 1) * sizeof op);
    list->ops[list->count++] = op;
}
static int give(Stream *s, Op op) { append(s->capturing ? &s->captured : &s->queue, op); return OK; }
static void run(Stream *s) {
    List list = s->queue;
    s->queue = (List){0};
    for (int i = 0; i < list.count; i++) {
        Op *op = &list.ops[i];
        if (op->kind == COPY) memcpy(op->to, op->from, op->size);
        else if (op->kind == CALL) op->call(op->user);
        else { ((Event *)op->to)->ms = now(); ((Event *)op->to)->recorded = 1; }
    }
    free(list.ops);
}
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    CURRENT("cuMemcpyHtoDAsync_v2");
    if (!stream || !inside((void *)to, size, 0) || !inside(from, size, 1)) return INVALID_VALUE;
    return give(stream, (Op){COPY, (void *)to, from, size, 0, 0});
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    CURRENT("cuMemcpyDtoHAsync_v2");
    if (!stream || !inside(to, size, 1) || !inside((void *)from, size, 0)) return INVALID_VALUE;
    return give(stream, (Op){COPY, to, (void *)from, size, 0, 0});
}
API int cuLaunchHostFunc(void *stream, HostFn call, void *user) { CURRENT("cuLaunchHostFunc"); return give(stream, (Op){CALL, 0, 0, 0, call, user}); }

API int cuStreamCreate(void **stream, unsigned flags) {
    CURRENT("cuStreamCreate");
    *stream = calloc(1, sizeof(Stream));
    count(STREAM, 1);
    return flags > 1 ? INVALID_VALUE : OK;
}
API int cuStreamDestroy_v2(void *stream) {
    CURRENT("cuStreamDestroy_v2");
    Stream *s = stream;
    free(s->queue.ops);
    free(s->captured.ops);
    free(s);
    count(STREAM, -1);
    return OK;
}
API int cuStreamSynchronize(void *stream) {
    CURRENT("cuStreamSynchronize");
    Stream *s = stream;
    if (s->capturing) { s->broken = 1; return CAPTURE_UNSUPPORTED; }
    run(s);
    return OK;
}
API int cuStreamIsCapturing(void *stream, int *status) { CURRENT("cuStreamIsCapturing"); *status = ((Stream *)stream)->capturing; return OK; }
API int cuStreamBeginCapture_v2(void *stream, int mode) {
    CURRENT("cuStreamBeginCapture_v2");
    Stream *s = stream;
    if (mode != 1 || s->capturing) return INVALID_VALUE;
    s->capturing = 1;
    s->broken = 0;
    capturing++;
    return OK;
}
API int cuStreamEndCapture(void *stream, void **graph) {
    CURRENT("cuStreamEndCapture");
    Stream *s = stream;
    if (!s->capturing) return INVALID_VALUE;
    List *list = malloc(sizeof *list);
    *list = s->captured;
    s->captured = (List){0};
    s->capturing = 0;
    capturing--;
    if (s->broken) { free(list->ops); free(list); *graph = NULL; return CAPTURE_INVALIDATED; }
    *graph = list;
    count(GRAPH, 1);
    return OK;
}
API int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    CURRENT("cuGraphInstantiateWithFlags");
    if (flags || !graph) return INVALID_VALUE;
    List *from = graph, *to = calloc(1, sizeof *to);
    for (int i = 0; i < from->count; i++) append(to, from->ops[i]);
    *exec = to;
    count(EXEC, 1);
    return OK;
}
API int cuGraphLaunch(void *exec, void *stream) {
    CURRENT("cuGraphLaunch");
    List *list = exec;
    for (int i = 0; i < list->count; i++) give(stream, list->ops[i]);
    return OK;
}
static int forget(void *list, int kind) { free(((List *)list)->ops); free(list); count(kind, -1); return OK; }
API int cuGraphDestroy(void *graph) { CURRENT("cuGraphDestroy"); return forget(graph, GRAPH); }
API int cuGraphExecDestroy(void *exec) { CURRENT("cuGraphExecDestroy"); return forget(exec, EXEC); }

API int cuEventCreate(void **event, unsigned flags) { CURRENT("cuEventCreate"); (void)flags; *event = calloc(1, sizeof(Event)); count(EVENT, 1); return OK; }
API int cuEventDestroy_v2(void *event) { CURRENT("cuEventDestroy_v2"); free(event); count(EVENT, -1); return OK; }
API int cuEventRecord(void *event, void *stream) {
    CURRENT("cuEventRecord");
    ((Event *)event)->stream = stream;
    ((Event *)event)->recorded = 0;
    return give(stream, (Op){RECORD, event, 0, 0, 0, 0});
}
API int cuEventSynchronize(void *event) {
    CURRENT("cuEventSynchronize");
    Stream *s = ((Event *)event)->stream;
    if (s && s->capturing) return CAPTURE_UNSUPPORTED;
    if (s) run(s);
    return OK;
}
API int cuEventElapsedTime(float *ms, void *start, void *end) {
    CURRENT("cuEventElapsedTime");
    if (!((Event *)start)->recorded || !((Event *)end)->recorded) return NOT_READY;
    *ms = ((Event *)end)->ms - ((Event *)start)->ms;
    return OK;
}
