//! Networks, scorers and the maths on a device that is not the host, against the same on the host.
//!
//! The device is `tests/interposed/stand_in_card.cpp`: it computes what the CPU computes, and refuses tensors that are
//! elsewhere, as a GPU does. Each test starts itself again under it.

mod families;
mod maths;
mod scorers;
mod waits;

use models::reference_case::Deviation;
use tch::{Device, Tensor};

const CARD: Device = Device::Cuda(0);

/// What was computed, each under a name that says what it is.
type Found = Vec<(String, Tensor)>;

/// Holds what was computed on the card against what was computed on the host, bit for bit.
#[track_caller]
fn assert_same(walk: impl Fn(Device) -> Found) {
    let (on_card, on_host) = (walk(CARD), walk(Device::Cpu));
    assert_eq!(on_card.len(), on_host.len());
    assert!(!on_card.is_empty(), "nothing was computed");
    for ((name, card), (_, host)) in on_card.iter().zip(&on_host) {
        assert!(host.isfinite().all().int64_value(&[]) == 1, "{name} is not finite on the host");
        let deviation = Deviation::between(card, host);
        assert!(card.to_device(Device::Cpu) == *host, "{name}: {deviation:?}");
    }
}

/// Without this, a card that takes everything would let everything pass.
#[test]
fn the_card_refuses_what_is_on_the_host() {
    tests::on_stand_in_card("the_card_refuses_what_is_on_the_host", || {
        assert!(tch::Cuda::is_available() && tch::Cuda::device_count() == 1);
        let host = Tensor::from_slice(&[1.0_f32, 2.0]);
        let card = host.to_device(CARD);
        assert_eq!(card.device(), CARD);
        let refused = |result: Result<Tensor, tch::TchError>| {
            let told = result.expect_err("this must be refused").to_string();
            assert!(told.contains("Expected all tensors to be on the same device"), "{told}");
        };
        refused(card.f_add(&host));
        refused(host.f_mul(&card));
        refused(card.f_dot(&host));
        refused(Tensor::f_cat(&[&card, &host], 0));
        refused(card.f_where_self(&card.gt(0.0).to_device(Device::Cpu), &card));
        refused(Tensor::f_embedding(&card.unsqueeze(1), &Tensor::from_slice(&[0_i64]), -1, false, false));
        // A number without dimensions, an index and a copy may come from the host.
        assert_eq!(card.f_mul(&Tensor::from(2.0_f32)).expect("a number").device(), CARD);
        assert_eq!(card.f_index(&[Some(Tensor::from_slice(&[1_i64]))]).expect("an index").device(), CARD);
        card.shallow_clone().copy_(&(host * 3.0));
        assert_eq!(card.double_value(&[1]), 6.0);
    });
}
