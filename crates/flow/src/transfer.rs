//! Between the host's memory and a device's.

use tch::{Device, Tensor};

/// A copy in the host's memory, which later changes of the tensor leave as it is.
pub fn host_copy(tensor: &Tensor) -> Tensor {
    // What is on another device is copied by coming here.
    let here = tensor.to_device(Device::Cpu);
    if tensor.device() == Device::Cpu { here.copy() } else { here }
}

/// Values of the host where a device finds them, in the order of what it is told: unlike `to_device`, it does not wait until
/// the device has done all that it was told before. The host's memory may be given back at once.
pub fn upload(values: &Tensor, device: Device) -> Tensor {
    let (non_blocking, copy) = (true, false);
    values.to_device_(device, values.kind(), non_blocking, copy)
}
