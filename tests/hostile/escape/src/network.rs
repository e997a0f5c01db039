//! Attempts on the network and on sockets of other processes.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use crate::{Log, Targets, call, outcome, reaches, works};

pub fn attempts(log: &mut Log, targets: &Targets) {
    let here = Ipv4Addr::LOCALHOST;
    log.tries("granted.pair", || outcome(UnixStream::pair()));
    log.tries("network.tcp_connect", || outcome(TcpStream::connect((here, targets.tcp))));
    log.tries("network.tcp_listen", || outcome(TcpListener::bind((here, 0))));
    log.tries("network.udp_send", || {
        outcome(UdpSocket::bind((here, 0)).and_then(|socket| socket.send_to(b"hello", (here, targets.udp))))
    });
    log.tries("network.unix_connect", || outcome(UnixStream::connect(&targets.socket)));
    log.tries("network.unix_listen", || outcome(UnixListener::bind(targets.root.join("out/socket"))));
    drop(std::fs::remove_file(targets.root.join("out/socket")));
    log.tries("network.abstract_connect", || {
        let address = SocketAddr::from_abstract_name(&targets.abstract_name);
        outcome(address.and_then(|address| UnixStream::connect_addr(&address)))
    });
    // A pair of this kind could be sent elsewhere.
    log.tries("network.datagram_pair", || outcome(UnixDatagram::pair()));
    let kinds = [
        ("network.netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("network.packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("network.vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("network.algorithm", libc::AF_ALG, libc::SOCK_SEQPACKET),
    ];
    for (name, family, kind) in kinds {
        log.tries(name, || reaches(call(libc::SYS_socket, [family as usize, kind as usize, 0, 0, 0])));
    }
    log.tries("network.io_uring", || {
        // The kernel writes what it has chosen into this; 120 bytes of it.
        let mut parameters = [0_u64; 15];
        works(call(libc::SYS_io_uring_setup, [8, parameters.as_mut_ptr() as usize, 0, 0, 0]))
    });
}
