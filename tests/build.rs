//! Lets examples of this package find libtorch at run time without `LD_LIBRARY_PATH`; its library links none.

fn main() {
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg-examples=-Wl,-rpath,{libtorch}/lib");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
}
