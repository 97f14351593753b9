//! t
#[test]
fn t() { let a = tch::Tensor::ones([2,2],(tch::Kind::Float,tch::Device::Cpu)); assert_eq!(a.sum(tch::Kind::Float).double_value(&[]),4.0); println!("{}", tch::get_num_threads()); }
