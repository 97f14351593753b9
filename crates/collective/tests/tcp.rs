//! Ranks by TCP, in the clear and by mutual TLS: what they do together, and what they say when one of them does not.

mod ranks;

use collective::tcp::{GroupId, TcpGathering, TcpGroup, TcpSettings};
use collective::{Collective, CollectiveError, SubtreeSums, TreePlan, ordered_sum, ordered_sum_of_slice};
use ranks::{PATIENCE, Security, deadline, groups, id, listeners, on_all, settings};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that differ from each other and between ranks.
fn bytes(rank: usize, length: usize) -> Vec<u8> {
    (0..length).map(|idx| (idx * 7 + idx / 251 + rank * 31) as u8).collect()
}

/// Short, of odd length, and longer than what sockets and TLS hold.
const LENGTHS: [usize; 4] = [0, 1, 4099, 3_000_001];

#[test]
fn a_broadcast_brings_the_roots_bytes_to_all() {
    for security in Security::ALL {
        for n_ranks in [1, 2, 3, 5] {
            on_all(groups(n_ranks, security), |group| {
                for (turn, length) in LENGTHS.into_iter().enumerate() {
                    let root = turn % n_ranks;
                    let mut here = bytes(group.rank(), length);
                    group.broadcast(root, &mut here, deadline()).expect("broadcast");
                    assert!(here == bytes(root, length), "{length} bytes from {root} of {n_ranks}");
                }
            });
        }
    }
}

#[test]
fn all_gather_fills_in_uneven_parts() {
    for security in Security::ALL {
        for n_ranks in [1, 2, 3, 5] {
            on_all(groups(n_ranks, security), |group| {
                let mut bounds = vec![0];
                for rank in 0..n_ranks {
                    bounds.push(bounds[rank] + LENGTHS[(rank + n_ranks) % LENGTHS.len()]);
                }
                let mut all = vec![0; bounds[n_ranks]];
                let own = bounds[group.rank()]..bounds[group.rank() + 1];
                all[own.clone()].copy_from_slice(&bytes(group.rank(), own.len()));
                group.all_gather(&mut all, &bounds, deadline()).expect("all-gather");
                for rank in 0..n_ranks {
                    let part = &all[bounds[rank]..bounds[rank + 1]];
                    assert!(part == bytes(rank, part.len()), "part {rank} of {n_ranks}");
                }
            });
        }
    }
}

#[test]
fn all_to_all_brings_every_rank_what_every_other_has_for_it() {
    for security in Security::ALL {
        on_all(groups(4, security), |group| {
            let rank = group.rank();
            let length = |from: usize, to: usize| LENGTHS[(from + 2 * to) % LENGTHS.len()];
            let outgoing: Vec<Vec<u8>> = (0..4).map(|to| bytes(rank * 4 + to, length(rank, to))).collect();
            let mut incoming: Vec<Vec<u8>> = (0..4).map(|from| vec![0; length(from, rank)]).collect();
            let parts: Vec<&[u8]> = outgoing.iter().map(Vec::as_slice).collect();
            let mut places: Vec<&mut [u8]> = incoming.iter_mut().map(Vec::as_mut_slice).collect();
            group.all_to_all(&parts, &mut places, deadline()).expect("all-to-all");
            for from in (0..4).filter(|&from| from != rank) {
                assert!(incoming[from] == bytes(from * 4 + rank, length(from, rank)), "{from} to {rank}");
            }
        });
    }
}

/// Numbers of a shard whose sum depends on its order.
fn gradient(shard: usize, length: usize) -> Vec<f32> {
    let number = |idx: usize| {
        let mixed = ((shard * 1_000_003 + idx) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (mixed as f32 - 8_388_608.0) * 10f32.powi((mixed % 9) as i32 - 4)
    };
    (0..length).map(number).collect()
}

fn own_sums(group: &TcpGroup, plan: &TreePlan, length: usize) -> SubtreeSums {
    let mut sums = SubtreeSums::new(group.rank(), length);
    for shard in (0..plan.n_shards()).filter(|&shard| plan.rank_of(shard) == Some(group.rank())) {
        sums.add(plan, shard, gradient(shard, length)).expect("its shard");
    }
    sums
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn the_ordered_sum_has_the_same_bits_for_every_number_of_ranks() {
    // More than one chunk for every rank of two, and no multiple of anything.
    const LENGTH: usize = 600_011;
    let mut expected: Option<Vec<u32>> = None;
    for n_ranks in 1..=8 {
        let plan = TreePlan::even(8, n_ranks).expect("a plan");
        let sums = on_all(groups(n_ranks, Security::Plain), |group| {
            let sums = own_sums(group, &plan, LENGTH);
            bits(&ordered_sum(group, &plan, sums, deadline()).expect("a sum"))
        });
        for sum in sums {
            let expected = expected.get_or_insert_with(|| sum.clone());
            assert!(*expected == sum, "other bits with {n_ranks} ranks");
        }
    }
}

#[test]
fn ranks_without_shards_and_shards_anywhere_give_the_same_sum_in_slices() {
    const LENGTH: usize = 1003;
    let is_empty = |shard: usize| shard == 2 || shard == 5;
    let places = [
        vec![Some(0); 8],
        [3, 1, 0, 2, 1, 1, 3, 0].map(Some).to_vec(),
        // Rank 0 has none.
        [1, 2, 1, 3, 3, 2, 1, 2].map(Some).to_vec(),
    ];
    let bounds = [0, 0, 700, 701, LENGTH];
    let mut expected: Option<Vec<u32>> = None;
    for places in places {
        let plan = TreePlan::new(places.clone(), 4).expect("a plan").without(is_empty);
        let slices = on_all(groups(4, Security::Mutual), |group| {
            let sums = own_sums(group, &plan, LENGTH);
            ordered_sum_of_slice(group, &plan, sums, &bounds, deadline()).expect("a slice")
        });
        let lengths: Vec<usize> = slices.iter().map(Vec::len).collect();
        assert_eq!(lengths, [0, 700, 1, 302]);
        let sum = bits(&slices.concat());
        assert!(*expected.get_or_insert_with(|| sum.clone()) == sum, "other bits with {places:?}");
    }
}

#[test]
fn where_all_shards_are_empty_the_sum_is_zero() {
    let plan = TreePlan::even(4, 2).expect("a plan").without(|_| true);
    let sums = on_all(groups(2, Security::Plain), |group| {
        let sums = SubtreeSums::new(group.rank(), 5);
        ordered_sum(group, &plan, sums, deadline()).expect("zeros")
    });
    assert_eq!(sums, [[0.0; 5], [0.0; 5]]);
}

#[test]
fn a_barrier_holds_until_the_last_rank_comes() {
    let mut groups = groups(3, Security::Plain);
    let mut last = groups.pop().expect("three ranks");
    let (came, comes) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for mut group in groups {
            let came = came.clone();
            scope.spawn(move || {
                group.barrier(deadline()).expect("a barrier");
                came.send(()).expect("the test listens");
            });
        }
        assert!(comes.recv_timeout(Duration::from_millis(100)).is_err(), "a barrier without its last rank");
        last.barrier(deadline()).expect("a barrier");
        for _ in 0..2 {
            comes.recv_timeout(PATIENCE).expect("the others go on");
        }
    });
}

#[test]
fn who_does_not_come_is_named_with_address_and_part() {
    let mut groups = groups(3, Security::Plain);
    let (silent, mut first) = (groups.remove(1), groups.remove(0));
    let last = groups.remove(0);
    // The third rank does its part, so it is not to blame.
    let last = thread::spawn(move || {
        let mut last = last;
        last.barrier(deadline()).expect_err("nobody else")
    });
    let soon = Instant::now() + Duration::from_millis(200);
    let error = first.barrier(soon).expect_err("rank 1 is silent");
    let CollectiveError::Late { peer, part, waited } = &error else { panic!("{error}") };
    assert_eq!(peer.rank, 1, "{error}");
    assert_eq!(part, "send its part of barrier 1: 0 of 0 bytes came");
    assert!(*waited >= Duration::from_millis(20), "{error}");
    // The first rank has left, which the third one learns at once and not at its own deadline.
    let told = last.join().expect("it ends");
    assert!(matches!(told, CollectiveError::Gone { peer, .. } if peer.rank == 0), "{told}");
    let spent = first.barrier(deadline()).expect_err("the group is of no use any more");
    assert_eq!(spent, CollectiveError::Spent(error.to_string()));
    drop(silent);
}

#[test]
fn a_rank_that_takes_nothing_is_named() {
    let mut groups = groups(2, Security::Plain);
    let silent = groups.pop().expect("two ranks");
    let mut root = groups.pop().expect("two ranks");
    // More than the sockets hold.
    let mut bytes = vec![0; 64 << 20];
    let error = root.broadcast(0, &mut bytes, Instant::now() + Duration::from_millis(300)).expect_err("late");
    let CollectiveError::Late { peer, part, .. } = &error else { panic!("{error}") };
    assert!(peer.rank == 1 && part.starts_with("take its part of broadcast 1: "), "{error}");
    drop(silent);
}

#[test]
fn a_rank_that_dies_ends_the_operation_of_all_at_once() {
    for security in Security::ALL {
        let mut groups = groups(4, security);
        drop(groups.remove(2));
        let start = Instant::now();
        let errors = on_all(groups, |group| {
            let mut bytes = vec![0; 1 << 20];
            group.all_gather(&mut bytes, &[0, 0, 1 << 19, 1 << 20, 1 << 20], deadline()).expect_err("gone")
        });
        assert!(start.elapsed() < PATIENCE / 2, "they waited for a deadline");
        for error in errors {
            assert!(matches!(error, CollectiveError::Gone { .. }), "{error}");
        }
    }
}

#[test]
fn a_rank_that_is_done_may_leave_while_others_still_wait_for_each_other() {
    // More than the sockets hold, so that the second rank cannot be rid of it before the third one comes.
    const LENGTH: usize = 32 << 20;
    for security in Security::ALL {
        let [mut root, mut second, mut third] =
            groups(3, security).try_into().unwrap_or_else(|_| panic!("three ranks"));
        thread::scope(|scope| {
            scope.spawn(move || second.broadcast(0, &mut vec![0; LENGTH], deadline()).expect("passed on"));
            root.broadcast(0, &mut vec![1; LENGTH], deadline()).expect("sent");
            drop(root);
            let mut bytes = vec![0; LENGTH];
            third.broadcast(0, &mut bytes, deadline()).expect("the root was done");
            assert!(bytes.iter().all(|&byte| byte == 1));
        });
    }
}

#[test]
fn an_abort_wakes_this_rank_and_all_others() {
    let mut groups = groups(3, Security::Mutual);
    let silent = groups.remove(2);
    let aborter = groups[0].aborter();
    let waiting: Vec<_> = groups
        .into_iter()
        .map(|mut group| thread::spawn(move || group.barrier(deadline()).expect_err("aborted")))
        .collect();
    aborter.abort("the members change");
    aborter.abort("a later reason");
    let errors: Vec<CollectiveError> =
        waiting.into_iter().map(|thread| thread.join().expect("it ends")).collect();
    assert_eq!(errors[0], CollectiveError::Aborted("the members change".to_owned()));
    assert!(matches!(errors[1], CollectiveError::Gone { peer, .. } if peer.rank == 0), "{}", errors[1]);
    drop(silent);
}

#[test]
fn ranks_that_do_different_things_find_out() {
    let errors = on_all(groups(2, Security::Plain), |group| {
        let mut bytes = vec![0; 8];
        match group.rank() {
            0 => group.all_gather(&mut bytes, &[0, 4, 8], deadline()).expect_err("another operation"),
            // Neither gets the length that it waits for: who got it would be done before it could find out.
            _ => group.all_gather(&mut bytes[..6], &[0, 3, 6], deadline()).expect_err("another operation"),
        }
    });
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let ours = "is at all-gather 1 with 3 bytes while this rank is at all-gather 1 with 4 bytes";
    // Who finds out first leaves; the other one sees either.
    assert!(told.iter().any(|told| told.contains(ours) || told.contains("with 4 bytes while")), "{told:?}");
}

#[test]
fn arguments_that_cannot_be_meant_leave_the_group_intact() {
    let refused = on_all(groups(2, Security::Plain), |group| {
        let mut bytes = [0; 8];
        let refused = [
            group.broadcast(2, &mut bytes, deadline()),
            group.all_gather(&mut bytes, &[0, 9, 8], deadline()),
            group.all_gather(&mut bytes, &[0, 8], deadline()),
            group.all_to_all(&[&[]], &mut [], deadline()),
        ];
        group.barrier(deadline()).expect("the group is intact");
        refused.map(|result| result.expect_err("refused"))
    });
    for error in refused.concat() {
        assert!(matches!(error, CollectiveError::Argument(_)), "{error}");
    }
}

#[test]
fn a_rank_of_another_epoch_id_or_size_is_not_let_in() {
    let other_id = GroupId { unique: [9; 16], ..id(4) };
    let cases: [(GroupId, usize, &str); 3] = [
        (id(3), 2, "the group is of epoch 4, not 3"),
        (other_id, 2, "the group of epoch 4 has another unique id"),
        (id(4), 3, "the group has 2 ranks, not 3"),
    ];
    for (id_of_caller, n_ranks, reason) in cases {
        let (listeners, addresses) = listeners(2);
        let right = settings(0, &addresses, id(4), Security::Plain);
        let mut addresses = addresses;
        addresses.resize(n_ranks, addresses[0]);
        let wrong = settings(1, &addresses, id_of_caller, Security::Plain);
        let gathering = TcpGathering::new(right).expect("valid");
        let aborter = gathering.aborter();
        thread::scope(|scope| {
            let waits = scope.spawn(|| gathering.meet(&listeners[0], deadline()));
            let refused = TcpGathering::new(wrong).expect("valid").meet(&listeners[1], deadline());
            let refused = refused.err().expect("not let in");
            assert!(
                matches!(&refused, CollectiveError::Refused { reason: told, .. } if told == reason),
                "{refused}"
            );
            aborter.abort("it still waits");
            let told = waits.join().expect("it ends").err().expect("nobody came");
            assert_eq!(told, CollectiveError::Aborted("it still waits".to_owned()));
        });
    }
}

#[test]
fn who_does_not_call_is_named() {
    let (listeners, addresses) = listeners(2);
    let gathering = TcpGathering::new(settings(0, &addresses, id(4), Security::Plain)).expect("valid");
    let soon = Instant::now() + Duration::from_millis(200);
    let late = gathering.meet(&listeners[0], soon).err().expect("nobody came");
    let CollectiveError::Late { peer, part, .. } = &late else { panic!("{late}") };
    assert_eq!((peer.rank, part.as_str()), (1, "call this rank for epoch 4"));
}

#[test]
fn strangers_that_say_nothing_or_nonsense_keep_nobody_out() {
    let (listeners, addresses) = listeners(2);
    let mut silent: Vec<TcpStream> =
        (0..8).map(|_| TcpStream::connect(addresses[0]).expect("connected")).collect();
    let mut rude = TcpStream::connect(addresses[0]).expect("connected");
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let start = Instant::now();
    thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let settings = settings(rank, &addresses, id(1), Security::Plain);
            scope.spawn(move || {
                TcpGathering::new(settings).expect("valid").meet(listener, deadline()).expect("met")
            });
        }
    });
    assert!(start.elapsed() < PATIENCE / 2, "a stranger was waited for");
    // Their connections are closed, with nothing said: reading ends or is reset.
    for stranger in silent.iter_mut().chain([&mut rude]) {
        stranger.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
}

#[test]
fn who_has_no_certificate_of_the_run_is_not_let_in() {
    let (listeners, addresses) = listeners(2);
    let member = settings(0, &addresses, id(1), Security::Mutual);
    let stranger = settings(1, &addresses, id(1), Security::Stranger);
    let gathering = TcpGathering::new(member).expect("valid");
    let aborter = gathering.aborter();
    thread::scope(|scope| {
        let member = scope.spawn(|| gathering.meet(&listeners[0], deadline()));
        let refused = TcpGathering::new(stranger).expect("valid").meet(&listeners[1], deadline());
        let refused = refused.err().expect("not let in").to_string();
        assert!(refused.contains("is gone during the handshake of TLS"), "{refused}");
        aborter.abort("it still waits");
        let told = member.join().expect("it ends").err().expect("nobody came");
        assert_eq!(told, CollectiveError::Aborted("it still waits".to_owned()));
    });
}

#[test]
fn an_abort_ends_a_gathering_that_nobody_comes_to() {
    let (listeners, addresses) = listeners(3);
    let gathering = TcpGathering::new(settings(1, &addresses, id(1), Security::Plain)).expect("valid");
    let aborter = gathering.aborter();
    thread::scope(|scope| {
        let waits = scope.spawn(|| gathering.meet(&listeners[1], deadline()));
        aborter.abort("no");
        let error = waits.join().expect("it ends").err().expect("aborted");
        assert_eq!(error, CollectiveError::Aborted("no".to_owned()));
    });
}

#[test]
fn a_rank_that_nobody_answers_says_whom_it_called() {
    // A port that nobody gets who takes any free one.
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let own = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addresses = vec![closed, own.local_addr().expect("an address")];
    let settings = TcpSettings { rank: 1, addresses, id: id(1), tls: None };
    let soon = Instant::now() + Duration::from_millis(200);
    let error = TcpGathering::new(settings).expect("valid").meet(&own, soon).err().expect("nobody");
    let CollectiveError::Late { peer, part, .. } = &error else { panic!("{error}") };
    assert_eq!((peer.rank, peer.address), (0, closed));
    assert!(part.starts_with("answer this rank's call for epoch 1"), "{error}");
}
