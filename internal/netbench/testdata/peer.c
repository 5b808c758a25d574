// Both ends of the network benchmark: the server on the host and the client in the
// guest, of plain blocking sockets. In C, because a language runtime's own threads would
// compete with the guest for the processors.
//
//	gcc -O2 -static -o peer peer.c
//	peer server 10.0.0.1
//	peer client 10.0.0.1 SECONDS rr,tx,rx

#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// What a connection is for: its first byte.
enum {
	ECHO = 'e',   // every byte comes back
	SINK = 's',   // bytes are counted, and the count comes back at the end
	SOURCE = 'g', // bytes come until the client has enough
};

static char buf[128 << 10];

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int must(int r, const char *what)
{
	if (r < 0)
		err(1, "%s", what);
	return r;
}

static int socket_for(struct sockaddr_in *a, const char *addr)
{
	memset(a, 0, sizeof *a);
	a->sin_family = AF_INET;
	a->sin_port = htons(7000);
	if (inet_pton(AF_INET, addr, &a->sin_addr) != 1)
		errx(1, "%s: not an address", addr);
	return must(socket(AF_INET, SOCK_STREAM, 0), "socket");
}

static void no_delay(int c)
{
	int on = 1;
	must(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
}

static int write_all(int c, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t w = write(c, buf + done, n - done);
		if (w < 0)
			return -1;
		done += w;
	}
	return 0;
}

// serve answers one client; one that goes away is no matter.
static void serve(int c)
{
	uint64_t total = 0;
	ssize_t n;

	no_delay(c);
	if (read(c, buf, 1) != 1)
		return;
	switch (buf[0]) {
	case ECHO:
		while ((n = read(c, buf, sizeof buf)) > 0 && write_all(c, n) == 0)
			;
		break;
	case SINK:
		while ((n = read(c, buf, sizeof buf)) > 0)
			total += n;
		memcpy(buf, &total, sizeof total);
		write_all(c, sizeof total);
		break;
	case SOURCE:
		while (write_all(c, sizeof buf) == 0)
			;
	}
}

static void server(const char *addr)
{
	struct sockaddr_in a;
	int l = socket_for(&a, addr), on = 1;

	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	must(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
	must(bind(l, (struct sockaddr *)&a, sizeof a), "bind");
	must(listen(l, 8), "listen");
	for (;;) {
		int c = must(accept(l, NULL, NULL), "accept");
		if (must(fork(), "fork") == 0) {
			serve(c);
			_exit(0);
		}
		close(c);
	}
}

static int dial(const char *addr, char what)
{
	struct sockaddr_in a;
	int c = socket_for(&a, addr);

	must(connect(c, (struct sockaddr *)&a, sizeof a), "connect");
	no_delay(c);
	buf[0] = what;
	must(write_all(c, 1), "write");
	return c;
}

// exchange returns the round trips of one byte per second.
static double exchange(int c, double seconds)
{
	double begin = now();
	int n = 0;

	for (; now() - begin < seconds; n++) {
		must(write_all(c, 1), "write");
		if (read(c, buf, 1) != 1)
			err(1, "read");
	}
	return n / (now() - begin);
}

// send_for streams to the server and returns the rate at which it arrived, in MB/s.
static double send_for(const char *addr, double seconds)
{
	uint64_t total;
	size_t have = 0;
	int c = dial(addr, SINK);
	double begin = now();

	while (now() - begin < seconds)
		must(write_all(c, sizeof buf), "write");
	must(shutdown(c, SHUT_WR), "shutdown");
	while (have < sizeof total) {
		ssize_t n = read(c, (char *)&total + have, sizeof total - have);
		if (n <= 0)
			err(1, "read");
		have += n;
	}
	close(c);
	return total / 1e6 / (now() - begin);
}

// receive_for has the server stream and returns the rate in MB/s.
static double receive_for(const char *addr, double seconds)
{
	uint64_t total = 0;
	int c = dial(addr, SOURCE);
	double begin = now();

	while (now() - begin < seconds) {
		ssize_t n = read(c, buf, sizeof buf);
		if (n <= 0)
			err(1, "read");
		total += n;
	}
	close(c);
	return total / 1e6 / (now() - begin);
}

// client measures each of the figures over and over, after a warm-up; streams on a
// connection of its own because the server's count is of a whole one. After each result
// it rests, which is when this machine is stopped and another has its turn.
static void client(const char *addr, double seconds, const char *figures)
{
	for (;; usleep(500000)) {
		if (strstr(figures, "rr")) {
			int c = dial(addr, ECHO);
			exchange(c, seconds / 4);
			printf("result rr %.1f\n", exchange(c, seconds));
			close(c);
			usleep(500000);
		}
		if (strstr(figures, "tx")) {
			send_for(addr, seconds / 4);
			printf("result tx %.2f\n", send_for(addr, seconds));
			usleep(500000);
		}
		if (strstr(figures, "rx")) {
			receive_for(addr, seconds / 4);
			printf("result rx %.2f\n", receive_for(addr, seconds));
		}
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && strcmp(argv[1], "server") == 0)
		server(argv[2]);
	else if (argc == 5 && strcmp(argv[1], "client") == 0)
		client(argv[2], atof(argv[3]), argv[4]);
	else
		errx(1, "usage: peer server ADDR | peer client ADDR SECONDS FIGURES");
	return 0;
}
