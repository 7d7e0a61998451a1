// A driver and a compiler of CUDA that do nothing but count: for tests of what the host does, without a GPU.
// Built twice, as libcuda.so and as libnvrtc.so. Addresses of the device are addresses of the host.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static int launches, fills, capturing;
static void *pointers[64];
static char names[64][64];

// For the test.
int fake_launches(void) { return launches; }
int fake_fills(void) { return fills; }
void fake_capture(int now) { capturing = now; }
const char *fake_name(int launch) { return names[launch % 64]; }
static unsigned *status;
void fake_bad_table(void) { *status = 1; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &launches; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxGetCurrent(void **context) { *context = &launches; return 0; }
int cuDeviceGetName(char *name, int len, int device) { strncpy(name, "no GPU", len); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 75: *value = 9; break;               // compute capability
    case 76: *value = 0; break;
    case 16: *value = 132; break;             // multiprocessors
    case 13: *value = 1980000; break;         // kHz
    case 36: *value = 2619000; break;
    case 37: *value = 5120; break;            // bits
    case 38: *value = 50 << 20; break;        // L2
    case 97: *value = 227 << 10; break;       // shared memory of a block
    default: *value = 1;
  }
  return 0;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { *memory = status = calloc(1, bytes); return 0; }
int cuMemHostGetDevicePointer_v2(size_t *pointer, void *memory, unsigned flags) { *pointer = (size_t)memory; return 0; }
int cuModuleLoadData(void **module, const void *code) { *module = malloc(8); return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = strdup(name);
  return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuStreamIsCapturing(void *stream, int *now) { *now = capturing; return 0; }
int cuMemsetD8Async(size_t to, unsigned char value, size_t bytes, void *stream) { fills++; return 0; }
int cuLaunchKernel(void *function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
  strncpy(names[launches++ % 64], function, 63);
  return 0;
}

int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }
int nvrtcCreateProgram(void **program, const char *text, const char *name, int n, void *h, void *i) { *program = &fills; return 0; }
int nvrtcCompileProgram(void *program, int count, const char *const *options) { return 0; }
int nvrtcGetCUBINSize(void *program, size_t *bytes) { *bytes = 8; return 0; }
int nvrtcGetCUBIN(void *program, char *code) { memset(code, 0, 8); return 0; }
int nvrtcDestroyProgram(void **program) { return 0; }
