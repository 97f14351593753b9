//! Files that this or another program wrote: pickles, records of a run, certificates.

use crate::is_read;
use coordinator::device_kinds::DeviceKinds;
use coordinator::input_record::InputRecord;
use coordinator::launch::Handle;
use coordinator::run_record::RunRecord;
use pickle::{Limits, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use service::trust::{Identity, PeerCertificate, TokenFile, certificates_in, private_key_in};
use service::{OwnerRecord, Provenance};
use std::fmt::Debug;

/// Small ones, so that what a limit allows is little beside what a broken one would.
const LIMITS: Limits = Limits { bytes: 64 * 1024, values: 4096, depth: 100 };

const RUN_RECORD: &[u8] = include_bytes!("../../../../coordinator/tests/golden/run_record.json");
const EARLIER_RUN_RECORD: &[u8] =
    include_bytes!("../../../../coordinator/tests/golden/earlier_run_record.json");
const OWNER_RECORD: &[u8] = br#"{"epoch":3,"owner":{"host":"node-1","pid":7,"nonce":"00ff"},"machine":"m","since":1,"is_released":false,"learner":null}"#;

pub(super) fn pickles() -> Vec<Vec<u8>> {
    let tree = Value::Dict(vec![
        (
            Value::String("scores".to_owned()),
            Value::List(vec![Value::Float(0.5), Value::Int(-7), Value::None]),
        ),
        (Value::String("image".to_owned()), Value::Bytes(vec![1; 40])),
        (Value::Int(1), Value::Tuple(vec![Value::Bool(true), Value::List(Vec::new())])),
    ]);
    let mut examples = vec![
        include_bytes!("../../../pickle/tests/golden/torch.pkl").to_vec(),
        include_bytes!("../../../pickle/tests/golden/numbers_4.pkl").to_vec(),
        include_bytes!("../../../pickle/tests/golden/plain_1.pkl").to_vec(),
        include_bytes!("../../../pickle/tests/golden/command_0.pkl").to_vec(),
    ];
    examples.extend(pickle::write(&tree));
    examples
}

/// What is read and can be written comes back: compared as written, since NaN equals nothing.
pub(super) fn check_pickle(bytes: &[u8]) -> bool {
    let Ok(value) = pickle::read(bytes, &LIMITS) else { return false };
    let _ = (pickle::numbers(&value), pickle::byte_string(&value), value.describe());
    let Ok(written) = pickle::write(&value) else { return true };
    let again = pickle::read(&written, &Limits::default()).expect("what was written is read");
    assert_eq!(pickle::write(&again).as_ref(), Ok(&written), "it came back as another one");
    true
}

pub(super) fn records() -> Vec<Vec<u8>> {
    let inputs = serde_json::to_vec(&InputRecord::default()).expect("a record has a JSON form");
    let handle = br#"{"host":"gpu1","life":"worker-0.000001-000002","process":["node-1",7]}"#;
    vec![RUN_RECORD.to_vec(), EARLIER_RUN_RECORD.to_vec(), OWNER_RECORD.to_vec(), inputs, handle.to_vec()]
}

/// Every record that is read is written and read again as the same.
pub(super) fn check_records(bytes: &[u8]) -> bool {
    fn check<R: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
        let Ok(record) = serde_json::from_slice::<R>(bytes) else { return false };
        let written = serde_json::to_vec(&record).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<R>(&written).expect("what was written is read"), record);
        true
    }
    let are_read = [
        check::<RunRecord>(bytes),
        check::<InputRecord>(bytes),
        check::<OwnerRecord>(bytes),
        check::<Provenance>(bytes),
        check::<DeviceKinds>(bytes),
        check::<Handle>(bytes),
    ];
    are_read.contains(&true)
}

/// A worker's certificate and its key.
fn certified() -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::default();
    let name = "tempflow://tiny-0123/worker".try_into().expect("ASCII");
    parameters.subject_alt_names.push(rcgen::SanType::URI(name));
    (parameters.self_signed(&key).expect("a certificate"), key)
}

/// Certificate and key as a user keeps them, here in one text.
pub(super) fn identities() -> Vec<Vec<u8>> {
    let (certificate, key) = certified();
    vec![(certificate.pem() + &key.serialize_pem()).into_bytes()]
}

/// What is read of certificates and a key names a role, or says why it is of no use.
pub(super) fn check_identity(bytes: &[u8]) -> bool {
    let (chain, key) = (certificates_in(bytes), private_key_in(bytes));
    let are_read = [is_read(chain.as_ref()), is_read(key.as_ref())];
    let (Ok(chain), Ok(key)) = (chain, key) else { return are_read == [true, true] };
    let identity = Identity::new(chain, key);
    if let Ok(identity) = &identity {
        assert!(identity.certificate.name.to_string().starts_with("tempflow://"), "nobody's certificate");
    }
    is_read(identity)
}

pub(super) fn certificates() -> Vec<Vec<u8>> {
    let (certificate, _) = certified();
    let token = format!("tempflow.worker.tiny-0123.{}\n{}", "0f".repeat(32), certificate.pem());
    vec![certificate.der().to_vec(), token.into_bytes()]
}

pub(super) fn check_certificate(bytes: &[u8]) -> bool {
    let certificate = PeerCertificate::parse(bytes);
    if let Ok(certificate) = &certificate {
        let name = certificate.name.to_string();
        assert_eq!(name.parse(), Ok(certificate.name.clone()), "its name is not read as it is shown");
        let _ = certificate.check_time(std::time::UNIX_EPOCH);
        let _ = certificate.lifetime();
    }
    certificate.is_ok() || String::from_utf8_lossy(bytes).parse::<TokenFile>().is_ok()
}
