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

/// The device of tensors.
///
/// # Errors
/// If it is not here.
pub fn open_device(device: ComputeDevice) -> Result<Device, DeviceError> {
    match device {
        ComputeDevice::Cpu => Ok(Device::Cpu),
        ComputeDevice::Cuda(_) if !Cuda::is_available() => Err(DeviceError::NoCuda(device)),
        ComputeDevice::Cuda(position) => {
            let n_devices = Cuda::device_count();
            match (position as i64) < n_devices {
                true => Ok(Device::Cuda(position)),
                false => Err(DeviceError::NoSuchCuda { device, n_devices }),
            }
        }
    }
}
