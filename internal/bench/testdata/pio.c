// The peer of the pio benchmark: a guest that writes to a port COUNT times and
// halts, and the plainest loop around KVM_RUN. It prints the nanoseconds of one
// round trip.
//
//	gcc -O2 -static -o pio pio.c && ./pio COUNT

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { ENTRY = 0x1000, SIZE = 0x10000 };

// dec ecx is 32-bit in real mode: 1: out %al, $0x10; dec %ecx; jnz 1b; hlt
static const uint8_t code[] = { 0xe6, 0x10, 0x66, 0x49, 0x75, 0xfa, 0xf4 };

static uint64_t served;

static void port_write(const uint8_t *data, uint32_t size)
{
	served += size + (data[0] & 0);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int must(int r, const char *what)
{
	if (r < 0)
		err(1, "%s", what);
	return r;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		errx(2, "usage: pio COUNT");
	uint64_t count = strtoull(argv[1], NULL, 0);
	int sys = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = must(ioctl(sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	uint8_t *mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		err(1, "mmap");
	memcpy(mem + ENTRY, code, sizeof code);
	struct kvm_userspace_memory_region region = { .memory_size = SIZE, .userspace_addr = (uintptr_t)mem };
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	int cpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = must(ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap kvm_run");
	struct kvm_sregs sregs;
	must(ioctl(cpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	must(ioctl(cpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = ENTRY, .rcx = count, .rflags = 2 };
	must(ioctl(cpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	double start = now();
	for (;;) {
		if (ioctl(cpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR)
				continue;
			err(1, "KVM_RUN");
		}
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == 0x10)
				port_write((uint8_t *)run + run->io.data_offset, run->io.size * run->io.count);
			continue;
		case KVM_EXIT_HLT:
			break;
		default:
			errx(1, "exit reason %u", run->exit_reason);
		}
		break;
	}
	double took = now() - start;
	if (served != count)
		errx(1, "%llu exits of %llu", (unsigned long long)served, (unsigned long long)count);
	printf("result c %.0f\n", took / count);
	return 0;
}
