"""Carries the packets of one host, and disturbs them: delays, loses, cuts or damages them, each in one direction or both.

Started as `relay.py OUTER INNER`: makes these two TAP devices in the network namespace that it is started in, and carries
what one receives to the other. `tc netem` does the same where a kernel has it; many have not. Prints `ready`, then obeys
lines of standard input, each of which replaces the one before, and is answered by what was done to packets since the last:

    TO_DELAY_MS FROM_DELAY_MS LOSS CUT_TO CUT_FROM DAMAGE HIDDEN
    done DELAYED LOST DAMAGED

`to` is towards the host (INNER). LOSS, DAMAGE and HIDDEN are shares of packets; CUT_TO and CUT_FROM are 0 or 1. Delays vary by
half of what is said, so that packets overtake each other. Damage that is HIDDEN has the checksum of TCP fit what is damaged,
so that only what is above TCP can notice.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
# An Ethernet, an IPv4 and a TCP header: what is behind them is what a damaged packet has other bits in.
HEADERS = 54


def tap(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


TCP, CHECKSUM = 34, 50


def damaged(packet, is_hidden):
    changed = bytearray(packet)
    at = random.randrange(HEADERS, len(changed))
    word = at - (at - TCP) % 2
    before = bytes(changed[word : word + 2])
    changed[at] ^= 1 << random.randrange(8)
    # IPv4 with a header of 20 bytes, and TCP.
    if is_hidden and changed[12:15] == b"\x08\x00\x45" and changed[23] == 6:
        adjust_checksum(changed, before, bytes(changed[word : word + 2]))
    return bytes(changed)


def adjust_checksum(packet, before, after):
    """As RFC 1624 says: of the complements of the old sum and the old word, and the new word."""
    number = lambda two: int.from_bytes(two.ljust(2, b"\0"), "big")
    old = number(bytes(packet[CHECKSUM : CHECKSUM + 2]))
    total = (~old & 0xFFFF) + (~number(before) & 0xFFFF) + number(after)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    packet[CHECKSUM : CHECKSUM + 2] = (~total & 0xFFFF).to_bytes(2, "big")


def main():
    outer, inner = tap(sys.argv[1]), tap(sys.argv[2])
    other = {outer: inner, inner: outer}
    delay, cut, loss, damage, hidden = {outer: 0.0, inner: 0.0}, {outer: False, inner: False}, 0.0, 0.0, 0.0
    waiting, count = [], 0
    delayed, lost, n_damaged = 0, 0, 0
    print("ready", flush=True)
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([outer, inner, sys.stdin], [], [], pause)
        if sys.stdin in readable:
            words = sys.stdin.readline().split()
            if not words:
                return
            delay = {inner: float(words[0]) / 1e3, outer: float(words[1]) / 1e3}
            loss, damage, hidden = float(words[2]), float(words[5]), float(words[6])
            cut = {inner: words[3] == "1", outer: words[4] == "1"}
            print("done", delayed, lost, n_damaged, flush=True)
            delayed, lost, n_damaged = 0, 0, 0
        for source in (outer, inner):
            if source not in readable:
                continue
            try:
                packet = os.read(source, 65536)
            except OSError:
                continue
            target = other[source]
            if cut[target] or random.random() < loss:
                lost += 1
                continue
            if len(packet) > HEADERS and random.random() < max(damage, hidden):
                packet = damaged(packet, hidden > 0.0)
                n_damaged += 1
            delayed += delay[target] > 0.0
            at = time.monotonic() + delay[target] * random.uniform(0.75, 1.25)
            count += 1
            heapq.heappush(waiting, (at, count, target, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(waiting)
            try:
                os.write(target, packet)
            except OSError:
                # The device is not up, or its host is gone: a packet that is lost.
                pass


main()
