// A program whose output depends on nothing but that the processor and the
// kernel do what they should: integers, floating point in 32, 64 and 80 bits,
// strings, sorting, threads, jumps, signals and processes.
#define _GNU_SOURCE
#include <fenv.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t seed = 88172645463325252;

static uint64_t next(void) {
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static uint64_t mix(uint64_t h, uint64_t v) {
	h = (h ^ v) * 0x9e3779b97f4a7c15;
	return h ^ h >> 29;
}

static void integers(void) {
	uint64_t h = 1;
	for (int i = 0; i < 80000; i++) {
		uint64_t a = next(), b = next() >> (i % 63) | 1;
		unsigned s = next() & 63;
		h = mix(h, a / b + a % b);
		h = mix(h, (int64_t)a / (int64_t)b - (int64_t)a % (int64_t)b);
		h = mix(h, (uint32_t)a / (uint32_t)b ^ (int32_t)a % (int32_t)b);
		h = mix(h, (uint64_t)((unsigned __int128)a * b >> 64));
		h = mix(h, (uint64_t)((__int128)(int64_t)a * (int64_t)b >> s));
		h = mix(h, a << s | a >> (-s & 63));
		h = mix(h, __builtin_popcountll(a) + __builtin_clzll(b) + __builtin_ctzll(a | 1 << 20));
		h = mix(h, __builtin_bswap64(a) + __builtin_bswap32(b) + (int8_t)a + (int16_t)b);
		uint64_t sum;
		h = mix(h, __builtin_add_overflow(a, b, &sum) ? sum : ~sum);
		int32_t small;
		h = mix(h, __builtin_mul_overflow((int32_t)a, (int32_t)(b >> s), &small) ? 3 : small);
	}
	unsigned __int128 f = 1;
	for (int i = 1; i <= 34; i++)
		f *= i;
	printf("integers %016" PRIx64 " 34! = ", h);
	char digits[64], *p = digits + 63;
	*p = 0;
	for (; f; f /= 10)
		*--p = '0' + (int)(f % 10);
	printf("%s\n", p);
}

static void floats(void) {
	uint64_t h = 1;
	double sum = 0;
	float fsum = 0;
	for (int i = 1; i < 60000; i++) {
		double d = (double)(int64_t)next() / (double)(next() | 1);
		float f = (float)d * 1.7f;
		sum += sqrt(fabs(d)) / i;
		fsum += sqrtf(fabsf(f)) / (float)i;
		h = mix(h, (uint64_t)(int64_t)(d * 1e6) + (uint32_t)(int32_t)f);
		h = mix(h, (uint64_t)llrint(d) + (uint64_t)floor(d) + (uint64_t)fmax(d, f));
		uint64_t bits;
		memcpy(&bits, &d, 8);
		h = mix(h, bits);
		h = mix(h, d < f ? 1 : d == f ? 2 : 3);
	}
	printf("floats %016" PRIx64 " %.17g %a %.9g %a\n", h, sum, sum, fsum, fsum);
	printf("%g %g %g %a %d\n", 1 / 3.0, strtod("1e-310", 0), strtod("1.7976931348623157e308", 0), nextafter(1, 2), ilogb(1e-310));
	printf("%.12g %.12g %.12g %.12g\n", sin(1e5), exp(10.5), log(3), pow(2.5, 17.25));
	static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
	for (int i = 0; i < 4; i++) {
		volatile double one = 1, three = 3, big = 1e308, zero = 0;
		volatile long double lone = 1, lthree = 3;
		fesetround(modes[i]);
		feclearexcept(FE_ALL_EXCEPT);
		printf("round %d: %a %La %ld %ld", i, -one / three, lone / lthree, lrint(2.5 * one), lrint(-2.5 * one));
		volatile double a = big * 10, b = one / zero, c = zero / zero;
		printf(" %g %g %d %x\n", a, b, c != c, fetestexcept(FE_ALL_EXCEPT));
	}
	fesetround(FE_TONEAREST);
}

static void extended(void) {
	long double sum = 0, product = 1;
	for (int i = 1; i < 30000; i++) {
		long double x = (long double)(int64_t)next() / (long double)(next() | 1);
		sum += sqrtl(fabsl(x)) / i;
		product *= 1 + x * 0x1p-40L;
		if (i % 1000 == 0)
			sum += fmodl(x * 1e10L, 7.25L) + rintl(x) + floorl(x) - truncl(x);
	}
	printf("extended %.21Lg %La %La\n", sum, sum, product);
	printf("%Lg %.30Lf %Le %La\n", 1e4000L * 3, 1 / 7.0L, strtold("1e-4940", 0), nextafterl(1, 2));
	// Processors agree in all but the last bits of these.
	printf("%.16Lg %.16Lg %.16Lg %.16Lg %.16Lg\n", sinl(1), cosl(2), atanl(3), logl(4), expl(5));
	printf("%.16Lg %.16Lg %.16Lg %.16Lg\n", powl(2.5L, 100.25L), tanl(1), log2l(10), exp2l(0.3L));
}

struct item {
	uint64_t key;
	char name[16];
	double weight;
};

static int byKey(const void *a, const void *b) {
	uint64_t x = ((const struct item *)a)->key, y = ((const struct item *)b)->key;
	return (x > y) - (x < y);
}

static int byName(const void *a, const void *b) {
	return strcmp(((const struct item *)a)->name, ((const struct item *)b)->name);
}

static int byWeight(const void *a, const void *b) {
	double x = ((const struct item *)a)->weight, y = ((const struct item *)b)->weight;
	return (x > y) - (x < y);
}

static void sorting(void) {
	enum { count = 8000 };
	struct item *items = calloc(count, sizeof *items);
	for (int i = 0; i < count; i++) {
		items[i].key = next();
		items[i].weight = (double)(int64_t)next() * 1e-9;
		snprintf(items[i].name, sizeof items[i].name, "%c%08x", 'a' + i % 26, (unsigned)next());
	}
	int (*orders[])(const void *, const void *) = {byKey, byName, byWeight};
	for (int o = 0; o < 3; o++) {
		qsort(items, count, sizeof *items, orders[o]);
		uint64_t h = 1;
		for (int i = 0; i < count; i++)
			h = mix(h, items[i].key);
		printf("sorted %016" PRIx64 " %s %.17g\n", h, items[count / 2].name, items[count / 2].weight);
	}
	free(items);
}

static void strings(void) {
	enum { size = 70000 };
	char *a = malloc(size), *b = malloc(size);
	uint64_t h = 1;
	for (int i = 0; i < size; i++)
		a[i] = 'a' + next() % 26;
	a[size - 1] = 0;
	for (int i = 1; i < 1200; i++) {
		int n = next() % 400 + 1, x = next() % 60000, y = next() % 60000;
		memcpy(b + y, a + x, n);
		memmove(b + y + 3, b + y, n);
		memset(b + x, i, n / 3);
		h = mix(h, memcmp(b + x, b + y, n) > 0);
		h = mix(h, strlen(a + x));
		char *at = memchr(a + x, 'q', n);
		h = mix(h, at ? at - a : -1);
		h = mix(h, (uintptr_t)strrchr(a + x, 'z') - (uintptr_t)a);
		h = mix(h, strspn(a + x, "abcdefghijklmnopqrst") + strcspn(a + x, "xyz") + (strncmp(a + x, a + y, 3) > 0));
		char needle[4] = {a[y], a[y + 1], a[y + 2]};
		h = mix(h, (uintptr_t)strstr(a, needle) - (uintptr_t)a);
	}
	for (int i = 0; i < size; i++)
		h = mix(h, (unsigned char)b[i]);
	// The processor's own string instructions, in both directions.
	char *to = b + 1, *from = a + 5;
	size_t n = 50001;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	to = b + 60000, from = b + 59990, n = 7000;
	__asm__ volatile("std; rep movsq; cld" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	to = b, n = 60000;
	__asm__ volatile("repne scasb" : "+D"(to), "+c"(n) : "a"('q') : "cc", "memory");
	h = mix(h, to - b);
	to = b + 1, from = a + 5, n = 60000;
	__asm__ volatile("repe cmpsb" : "+D"(to), "+S"(from), "+c"(n) : : "cc", "memory");
	h = mix(h, n);
	for (int i = 0; i < size; i++)
		h = mix(h, (unsigned char)b[i]);
	printf("strings %016" PRIx64 "\n", h);
	free(a);
	free(b);
}

// vectors are loops for a compiler to vectorize.
static void vectors(void) {
	enum { size = 4096 };
	static int32_t a[size], b[size];
	static int16_t c[size], d[size];
	static uint8_t e[size], f[size];
	static float g[size];
	for (int i = 0; i < size; i++) {
		a[i] = next(), b[i] = next(), c[i] = next(), d[i] = next(), e[i] = next(), f[i] = next(), g[i] = (int)next() * 0.001f;
	}
	for (int round = 0; round < 50; round++) {
		int64_t wide = 0;
		for (int i = 0; i < size; i++) {
			a[i] = (int32_t)((uint32_t)a[i] * (uint32_t)b[i] + (uint32_t)round);
			b[i] = a[i] > b[i] ? a[i] : b[i] >> 1;
		}
		for (int i = 0; i < size; i++) {
			c[i] = (int16_t)((c[i] * d[i]) >> 3);
			int s = c[i] + d[i];
			d[i] = s > 32767 ? 32767 : s < -32768 ? -32768 : s;
		}
		for (int i = 0; i < size; i++) {
			e[i] = (e[i] + f[i] + 1) >> 1;
			f[i] = f[i] > e[i] ? f[i] - e[i] : e[i] ^ 0x55;
		}
		for (int i = 0; i < size; i++) {
			g[i] = g[i] * 0.5f + (float)a[i];
			wide += (int64_t)a[i] * e[i] + c[i];
		}
		a[round] ^= wide;
	}
	uint64_t h = 1;
	for (int i = 0; i < size; i++) {
		uint32_t bits;
		memcpy(&bits, &g[i], 4);
		h = mix(h, (uint32_t)a[i]), h = mix(h, (uint32_t)b[i]), h = mix(h, c[i]), h = mix(h, d[i]), h = mix(h, e[i] << 8 | f[i]), h = mix(h, bits);
	}
	printf("vectors %016" PRIx64 "\n", h);
}

enum { threads = 4, turns = 1000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int turn;
static uint64_t locked, order;
static atomic_uint_fast64_t added, swapped;
static _Thread_local uint64_t own;

static void *work(void *arg) {
	int id = (int)(intptr_t)arg;
	for (int i = 0; i < 15000; i++) {
		own += i ^ id;
		atomic_fetch_add(&added, own & 0xff);
		if (i % 8 == 0) {
			uint_fast64_t old = atomic_load(&swapped);
			while (!atomic_compare_exchange_weak(&swapped, &old, old + (own & 0xffff)))
				;
			pthread_mutex_lock(&lock);
			locked += own;
			pthread_mutex_unlock(&lock);
		}
	}
	// From one thread to the next, in order.
	for (int i = 0; i < turns; i++) {
		pthread_mutex_lock(&lock);
		while (turn % threads != id)
			pthread_cond_wait(&turned, &lock);
		order = mix(order, turn++);
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&lock);
	}
	return (void *)(uintptr_t)own;
}

static void threading(void) {
	pthread_t t[threads];
	uint64_t h = 1;
	for (intptr_t i = 0; i < threads; i++)
		pthread_create(&t[i], 0, work, (void *)i);
	for (int i = 0; i < threads; i++) {
		void *result;
		pthread_join(t[i], &result);
		h = mix(h, (uintptr_t)result);
	}
	printf("threads %016" PRIx64 " %" PRIu64 " %016" PRIx64 " %" PRIu64 " %" PRIu64 " %d\n", h, locked, order, (uint64_t)added, (uint64_t)swapped, turn);
}

static sigjmp_buf back;
static volatile sig_atomic_t caught, code;
static void *volatile where;

static void jump(int sig, siginfo_t *info, void *context) {
	(void)context;
	caught = sig;
	code = info->si_code;
	where = info->si_addr;
	siglongjmp(back, 1);
}

static void count(int sig) {
	(void)sig;
	caught++;
}

static int deep(jmp_buf env, int n) {
	volatile char room[100];
	room[n % 100] = n;
	if (n == 0)
		longjmp(env, 42);
	if (n < 0)
		return 0;
	return deep(env, n - 1) + room[n % 100];
}

static void jumps(void) {
	jmp_buf env;
	volatile uint64_t h = 1;
	for (volatile int i = 0; i < 200; i++) {
		int r = setjmp(env);
		if (r == 0)
			r = deep(env, i);
		h = mix(h, r + i);
	}
	printf("jumps %016" PRIx64 "\n", h);
}

static void signals(void) {
	char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(page + 4096, 4096, PROT_NONE);
	stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
	sigaltstack(&stack, 0);
	struct sigaction act = {.sa_sigaction = jump, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	static const int sigs[] = {SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS};
	for (int i = 0; i < 5; i++)
		sigaction(sigs[i], &act, 0);
	for (volatile int i = 0; i < 9 * 20; i++) {
		volatile int seven = 7, zero = 0, least = INT32_MIN, minus = -1;
		volatile double one = 1, none = 0;
		caught = 0;
		if (sigsetjmp(back, 1) == 0)
			switch (i % 9) {
			case 0:
				*(volatile char *)(page + 4096 + i) = 1;
				break;
			case 1:
				*(volatile long *)(page + 4096 - 3) = 1;
				break;
			case 2:
				printf("%d\n", seven / zero);
				break;
			case 3:
				printf("%d\n", least / minus);
				break;
			case 4:
				__asm__ volatile("ud2");
				break;
			case 5:
				__asm__ volatile("int3");
				break;
			case 6: // a non-canonical address
				*(volatile char *)(0x8000000000000000 + (uintptr_t)page) = 1;
				break;
			case 7:
				feenableexcept(FE_DIVBYZERO);
				one /= none;
				break;
			case 8: // a trap after one instruction
				__asm__ volatile("pushfq; orq $0x100,(%%rsp); popfq; nop; nop" : : : "memory", "cc");
				break;
			}
		fedisableexcept(FE_ALL_EXCEPT);
		if (i < 9)
			printf("signal %d: %d code %d at %ld\n", i, caught, code, i < 2 ? (long)((char *)where - page) : 0);
	}
	struct sigaction tick = {.sa_handler = count};
	sigaction(SIGALRM, &tick, 0);
	caught = 0;
	struct itimerval every = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
	setitimer(ITIMER_REAL, &every, 0);
	// Interrupts in the middle of arithmetic in every register file.
	volatile long double x = 1;
	volatile double y = 1;
	uint64_t rounds = 0;
	while (caught < 20) {
		x = x * 3 / 3 + 1 - 1;
		y = y * 5 / 5 + 1 - 1;
		rounds++;
	}
	setitimer(ITIMER_REAL, &never, 0);
	printf("timer %d %La %a\n", rounds > 0, x, y);
}

static void processes(void) {
	uint64_t h = 1;
	char *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *private = malloc(1 << 20);
	memset(private, 7, 1 << 20);
	fflush(stdout);
	for (int i = 0; i < 10; i++) {
		int p[2], status;
		if (pipe(p) != 0)
			exit(2);
		pid_t child = fork();
		if (child == 0) {
			for (int j = 0; j < 1 << 20; j += 4096)
				private[j] = i + j / 4096; // copied on write
			uint64_t sum = 1;
			for (int j = 0; j < 1 << 20; j += 512)
				sum = mix(sum, private[j]);
			shared[i] = (char)sum;
			if (write(p[1], &sum, sizeof sum) != sizeof sum)
				_exit(3);
			_exit(40 + i);
		}
		uint64_t sum = 0;
		if (read(p[0], &sum, sizeof sum) != sizeof sum)
			exit(4);
		waitpid(child, &status, 0);
		h = mix(h, sum);
		h = mix(h, WEXITSTATUS(status) + shared[i] + private[i * 4096]);
		close(p[0]);
		close(p[1]);
	}
	printf("processes %016" PRIx64 "\n", h);
}

int main(void) {
	integers();
	floats();
	extended();
	sorting();
	strings();
	vectors();
	threading();
	jumps();
	signals();
	processes();
	return 0;
}
