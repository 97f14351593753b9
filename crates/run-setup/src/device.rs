//! From a device's name to the device.

use config::ComputeDevice;
use tch::{Cuda, Device};

/// A device that is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no CUDA device, or libtorch was built without CUDA.
    #[error("device `{0}` is not available: this libtorch sees no CUDA device; use `cpu`")]
    NoCuda(ComputeDevice),
    /// There are CUDA devices, but not so many.
    #[error(
        "device `{device}` is not available: this process sees {n_devices} CUDA device(s), from `cuda` on"
    )]
    NoSuchCuda {
        /// The one asked for.
        device: ComputeDevice,
        /// How many there are.
        n_devices: i64,
    },
}

/// The device of tensors, whether it is here or not.
pub fn tensor_device(device: ComputeDevice) -> Device {
    device.position().map_or(Device::Cpu, Device::Cuda)
}

/// The device of tensors.
///
/// # Errors
/// If it is not here.
pub fn open_device(device: ComputeDevice) -> Result<Device, DeviceError> {
    match tensor_device(device) {
        Device::Cuda(_) if !Cuda::is_available() => Err(DeviceError::NoCuda(device)),
        Device::Cuda(position) if position as i64 >= Cuda::device_count() => {
            Err(DeviceError::NoSuchCuda { device, n_devices: Cuda::device_count() })
        }
        found => Ok(found),
    }
}
