#define VQP_KIND 8
#include "wna16_instances.h"
