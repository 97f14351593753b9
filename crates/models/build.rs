//! Lets binaries and tests of this package find libtorch at run time without `LD_LIBRARY_PATH`, and compiles what is told
//! libtorch when they are loaded.

use std::path::Path;

const SOURCE: &str = "src/determinism.cpp";

fn main() {
    let library = std::env::var("DEP_TCH_LIBTORCH_LIB");
    if let Ok(directory) = &library {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{directory}");
    }
    for variable in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed={SOURCE}");
    let includes = std::env::var("LIBTORCH_INCLUDE").or_else(|_| std::env::var("LIBTORCH"));
    // Beside the libraries, as in every distribution of libtorch, where nothing else is said.
    let root =
        includes.ok().or_else(|| Some(Path::new(library.as_ref().ok()?).parent()?.display().to_string()));
    let Some(root) = root else { return };
    compile(&Path::new(&root).join("include"));
}

/// Linked whole: nothing in it is called by name, since it runs when the program is loaded.
fn compile(include: &Path) {
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag(format!("-isystem{}", include.display()))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .link_lib_modifier("+whole-archive")
        .file(SOURCE)
        .compile("flow-rl-determinism");
}
