#define VQP_KIND 8
#include "w8a8_instances.h"
