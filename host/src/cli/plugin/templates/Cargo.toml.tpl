[package]
name = "{{name}}"
version = "0.1.0"
edition = "2024"

[lib]
# cdylib is what the daemon loads; rlib lets other programs link it.
crate-type = ["cdylib", "rlib"]

[dependencies]
kairos-plugin-api = {{api}}
serde_json = "1"

[profile.release]
panic = "unwind" # a panic is an error of the cycle, not the end of the process
strip = "debuginfo"

# Stands by itself, whatever directory it lies in.
[workspace]
