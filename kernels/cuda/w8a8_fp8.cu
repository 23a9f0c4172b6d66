#define VQP_KIND 9
#include "w8a8_instances.h"
