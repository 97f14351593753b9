//! `deploy/libtorch.sh`, with small programs in place of Python, the compilers and NVIDIA's: nothing is fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stands in for Python: notes what pip is asked for and puts files where its wheels would, or says where a PyTorch is
/// installed that has the library asked for.
const PYTHON: &str = r#"
case "$1" in
-m)
    [ "$3" = install ] || exit 0
    echo "$*" >> "$HOME/asked-of-pip"
    while [ "$1" != --target ]; do shift; done
    site=$2
    case "$*" in *torch==*)
        mkdir -p "$site/torch/lib" "$site/torch/include" "$site/torch-2.13.0.dist-info"
        for library in libtorch_cpu.so libtorch_cuda.so libc10.so libgomp.so.1; do : > "$site/torch/lib/$library"; done
        cat > "$site/torch-2.13.0.dist-info/METADATA" <<END
Requires-Dist: filelock
Requires-Dist: cuda-toolkit[cublas,nvtx]==13.0.2; platform_system == "Linux"
Requires-Dist: cuda-bindings<14,>=13.0.3; platform_system == "Linux"
Requires-Dist: nvidia-cudnn-cu13==9.19.0.56; platform_system == "Linux"
Requires-Dist: triton==3.6.0; platform_system == "Linux"
END
    esac
    case "$*" in *nvidia-cuda-runtime*)
        mkdir -p "$site/nvidia/cu13/lib"
        : > "$site/nvidia/cu13/lib/libcudart.so.13"
        : > "$site/nvidia/cu13/lib/libcupti.so.13"
    esac ;;
-)
    [ -e "$HOME/installed/torch/lib/$2" ] && echo "$HOME/installed/torch" ;;
esac
exit 0
"#;

/// A copy of the script in a repository of its own, and a home with programs that stand in for others.
struct Setup {
    home: tempfile::TempDir,
}

impl Setup {
    /// Without a GPU.
    fn new() -> Self {
        let setup = Self { home: tempfile::tempdir().expect("a directory") };
        fs::create_dir_all(setup.path("repository/deploy")).expect("created");
        let script = tests::repository().join("deploy/libtorch.sh");
        fs::copy(script, setup.path("repository/deploy/libtorch.sh")).expect("copied");
        fs::create_dir(setup.path("bin")).expect("created");
        setup.program("python3", PYTHON);
        ["cargo", "c++"].iter().for_each(|name| setup.program(name, "exit 0"));
        setup.program("nvidia-smi", "exit 9");
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        let text = path.with_extension("script");
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).expect("written");
        // Another process makes the program: one that this process has open for writing, as what tests in other threads start may
        // inherit, cannot be started.
        let installed = Command::new("install").args(["-m", "755"]).args([&text, &path]).status();
        assert!(installed.expect("started").success());
    }

    fn with_gpu(self) -> Self {
        self.program("nvidia-smi", "exit 0");
        self
    }

    /// A PyTorch that Python finds.
    fn with_installed(self, libraries: &[&str]) -> Self {
        fs::create_dir_all(self.path("installed/torch/lib")).expect("created");
        for library in libraries {
            fs::write(self.path("installed/torch/lib").join(library), "").expect("written");
        }
        self
    }

    /// Whether it went well, and what it said.
    fn run(&self, device: &str) -> (bool, String) {
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut command = Command::new("bash");
        command.arg(self.path("repository/deploy/libtorch.sh"));
        let output = command.env("PATH", path).env("HOME", self.home.path()).env("DEVICE", device).output();
        let output = output.expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).expect("text"))
    }

    /// What it says, which is nothing where there is nothing to do.
    fn set_up(&self, device: &str) -> String {
        let (is_done, said) = self.run(device);
        assert!(is_done, "{said}");
        said
    }

    fn asked_of_pip(&self) -> String {
        fs::read_to_string(self.path("asked-of-pip")).unwrap_or_default()
    }

    fn libtorch(&self, name: &str) -> PathBuf {
        self.path("repository/.libtorch").join(name)
    }

    fn stamp(&self) -> String {
        fs::read_to_string(self.libtorch("stamp")).expect("a stamp")
    }
}

/// Whether a driver shows itself here, which no stand-in can hide.
fn has_driver() -> bool {
    Path::new("/dev/nvidiactl").exists()
}

#[test]
fn without_a_gpu_libtorch_is_fetched_without_cuda_and_once() {
    let setup = Setup::new();
    let device = if has_driver() { "cpu" } else { "" };
    assert!(setup.set_up(device).contains("545 MB"));
    assert!(setup.libtorch("lib/libcudart.so.13").exists() && setup.libtorch("lib/libtorch.so").exists());
    assert!(!setup.libtorch("lib/libtorch_cuda.so").exists());
    assert!(setup.stamp().starts_with("libtorch 2.13.0 cpu"));
    assert_eq!(setup.set_up(device), "");
}

#[test]
fn with_a_gpu_it_is_fetched_with_what_its_wheel_needs_of_cuda() {
    let setup = Setup::new().with_gpu();
    let said = setup.set_up("");
    assert!(said.contains("2.5 GB") && said.contains("a GPU is seen; `make setup DEVICE=cpu`"), "{said}");
    let asked = setup.asked_of_pip();
    assert!(asked.contains(" cuda-toolkit[cublas,nvtx]==13.0.2 nvidia-cudnn-cu13==9.19.0.56\n"), "{asked}");
    assert!(!asked.contains("triton") && !asked.contains("cuda-bindings"), "{asked}");
    assert!(setup.libtorch("lib/libtorch_cuda.so").exists());
    assert_eq!((setup.stamp().as_str(), setup.set_up("").as_str()), ("libtorch 2.13.0 cuda", ""));
}

#[test]
fn a_view_for_the_cpu_is_replaced_once_a_gpu_is_seen_and_cuda_serves_a_cpu_too() {
    let setup = Setup::new();
    fs::create_dir_all(setup.libtorch("lib")).expect("created");
    fs::write(setup.libtorch("lib/libtorch_cpu.so"), "").expect("written");
    fs::write(setup.libtorch("stamp"), "libtorch 2.13.0").expect("written");
    if !has_driver() {
        assert_eq!(setup.set_up(""), "", "one of an earlier version of the script stays");
    }
    let setup = setup.with_gpu();
    setup.set_up("");
    assert!(setup.libtorch("lib/libtorch_cuda.so").exists());
    setup.program("nvidia-smi", "exit 9");
    assert_eq!(setup.set_up(""), "", "it may be meant for another machine");
}

#[test]
fn a_device_that_was_asked_for_stays_until_the_other_is() {
    let setup = Setup::new().with_gpu();
    assert!(setup.set_up("cpu").contains("545 MB"));
    assert_eq!(setup.set_up(""), "", "`make build` does not ask again");
    assert!(setup.set_up("cuda").contains("2.5 GB, once; as asked"));
    assert!(setup.set_up("cpu").contains("545 MB"));
    let (is_done, said) = setup.run("gpu");
    assert!(!is_done && said.contains("DEVICE is `gpu`; write `cpu` or `cuda`"), "{said}");
}

#[test]
fn an_installed_pytorch_is_used_if_it_has_what_is_wanted() {
    let setup = Setup::new().with_gpu().with_installed(&["libtorch_cpu.so"]);
    assert!(setup.set_up("").contains("2.5 GB"), "it has no CUDA half");
    let setup = Setup::new().with_gpu().with_installed(&["libtorch_cpu.so", "libtorch_cuda.so"]);
    assert!(setup.set_up("").contains("using the installed PyTorch"));
    assert!(!setup.asked_of_pip().contains("torch==") && setup.stamp() == "libtorch 2.13.0 cuda");
    let setup = Setup::new().with_installed(&["libtorch_cpu.so"]);
    assert!(setup.set_up("cpu").contains("using the installed PyTorch"));
}
