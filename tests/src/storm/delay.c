/* delay NODE BRIDGE MILLISECONDS: a relay between two links of one namespace. What comes in on NODE goes out on BRIDGE so much later, in
 * its order; what comes in on BRIDGE goes out on NODE at once. Says "ready" once it does. At SIGTERM it takes in nothing more from NODE
 * and ends when all that is on its way has gone out.
 *
 * For kernels without sch_netem. The virtio header keeps the kernel's own word on each frame (checksum still to be filled in, segments
 * still to be cut), without which nothing that TCP sends by a veth would arrive. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The largest frame before it is cut into segments, with its headers. */
#define LARGEST 80000
/* More than that many frames on their way are lost, as in any queue. */
#define ON_THEIR_WAY 65536

struct frame {
    int64_t due;
    size_t length;
    char *bytes;
};

static struct frame queue[ON_THEIR_WAY];
static size_t first, count;
static volatile sig_atomic_t ending;

static void end(int signal) {
    (void)signal;
    ending = 1;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int on(const char *link) {
    int yes = 1, size = 32 << 20, raw = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(link)};
    if (raw < 0 || setsockopt(raw, SOL_PACKET, PACKET_VNET_HDR, &yes, sizeof yes) ||
        setsockopt(raw, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes) ||
        setsockopt(raw, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) || setsockopt(raw, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) ||
        bind(raw, (struct sockaddr *)&at, sizeof at)) {
        perror(link);
        exit(1);
    }
    return raw;
}

int main(int words, char **word) {
    static char bytes[LARGEST];
    if (words != 4)
        return 2;
    int node = on(word[1]), bridge = on(word[2]);
    int64_t late = atoll(word[3]) * 1000000;
    struct pollfd both[] = {{.fd = node, .events = POLLIN}, {.fd = bridge, .events = POLLIN}};
    signal(SIGTERM, end);
    puts("ready");
    fflush(stdout);
    while (!ending || count) {
        struct timespec until = {0};
        if (count) {
            int64_t left = queue[first].due - now();
            if (left > 0) {
                until.tv_sec = left / 1000000000;
                until.tv_nsec = left % 1000000000;
            }
        }
        if (ending)
            both[0].fd = -1;
        ppoll(both, 2, count ? &until : NULL, NULL);
        ssize_t length;
        while ((length = recv(bridge, bytes, LARGEST, MSG_DONTWAIT)) > 0)
            (void)!send(node, bytes, (size_t)length, 0);
        while (!ending && (length = recv(node, bytes, LARGEST, MSG_DONTWAIT)) > 0) {
            struct frame *last = &queue[(first + count) % ON_THEIR_WAY];
            if (count == ON_THEIR_WAY || !(last->bytes = malloc((size_t)length)))
                continue;
            memcpy(last->bytes, bytes, (size_t)length);
            last->length = (size_t)length;
            last->due = now() + late;
            count++;
        }
        for (; count && queue[first].due <= now(); first = (first + 1) % ON_THEIR_WAY, count--) {
            (void)!send(bridge, queue[first].bytes, queue[first].length, 0);
            free(queue[first].bytes);
        }
    }
    return 0;
}
