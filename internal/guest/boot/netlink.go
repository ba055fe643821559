package boot

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// address is a static IPv4 configuration.
type address struct {
	prefix  netip.Prefix // the machine's address with the length of its network
	gateway netip.Addr
	dns     netip.Addr
}

// parseAddress reads "10.0.2.15/24,10.0.2.2,10.0.2.3"; gateway and DNS server may be left out.
func parseAddress(s string) (address, error) {
	parts := strings.Split(s, ",")
	if len(parts) > 3 {
		return address{}, fmt.Errorf("%q is not ADDRESS/LENGTH,GATEWAY,DNS", s)
	}
	var a address
	var err error
	if a.prefix, err = netip.ParsePrefix(parts[0]); err != nil {
		return address{}, err
	}
	for i, to := range []*netip.Addr{&a.gateway, &a.dns} {
		if len(parts) > 1+i && parts[1+i] != "" {
			if *to, err = netip.ParseAddr(parts[1+i]); err != nil {
				return address{}, err
			}
			if !to.Is4() {
				return address{}, fmt.Errorf("%v is not an IPv4 address", *to)
			}
		}
	}
	if !a.prefix.Addr().Is4() {
		return address{}, fmt.Errorf("%v is not an IPv4 address", a.prefix.Addr())
	}
	return a, nil
}

func (m *machine) loopback() error {
	n, err := openNetlink()
	if err != nil {
		return err
	}
	defer n.close()
	return n.up("lo")
}

// configureNetwork applies hearth.net of the command line.
func (m *machine) configureNetwork() error {
	s := m.args["hearth.net"]
	if s == "" {
		return nil
	}
	a, err := parseAddress(s)
	if err != nil {
		return fmt.Errorf("hearth.net: %w", err)
	}
	return m.setNetwork(a, "")
}

// setNetwork gives the machine's interface an address in the place of the one it had.
func (m *machine) setNetwork(a address, mac string) error {
	var dev string
	if err := await(5*time.Second, func() (bool, error) {
		all, err := filepath.Glob("/sys/class/net/*")
		for _, p := range all {
			// A device of the machine's, not a bridge or a pair's end of its containers.
			if _, err := os.Stat(p + "/device"); err == nil {
				dev = filepath.Base(p)
			}
		}
		return dev != "", err
	}); err != nil {
		return fmt.Errorf("no network interface: %w", err)
	}
	n, err := openNetlink()
	if err != nil {
		return err
	}
	defer n.close()
	if mac != "" {
		if err := n.setMAC(dev, mac); err != nil {
			return fmt.Errorf("%s: setting its address %s: %w", dev, mac, err)
		}
	}
	if m.net.prefix.IsValid() && m.net.prefix != a.prefix {
		if err := n.address(syscall.RTM_DELADDR, 0, dev, m.net.prefix); err != nil {
			m.logf("%s: removing %v: %v", dev, m.net.prefix, err)
		}
	}
	if err := n.up(dev); err != nil {
		return fmt.Errorf("%s: bringing it up: %w", dev, err)
	}
	if err := n.address(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, dev, a.prefix); err != nil {
		return fmt.Errorf("%s: adding %v: %w", dev, a.prefix, err)
	}
	if a.gateway.IsValid() {
		if err := n.route(dev, a.gateway); err != nil {
			return fmt.Errorf("%s: default route by %v: %w", dev, a.gateway, err)
		}
	}
	m.net = a
	if a.dns.IsValid() {
		return replaceFile("/etc/resolv.conf", "nameserver "+a.dns.String()+"\n")
	}
	return nil
}

// replaceFile writes a file of the system anew; a symbolic link in its place (to a resolver's own file) goes.
func replaceFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// netlink is a route netlink socket. The few messages needed are written here:
// a library for it would be larger than the agent.
type netlink struct {
	fd  int
	seq uint32
}

func openNetlink() (*netlink, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { syscall.Close(n.fd) }

// request sends a message and waits for the kernel's acknowledgement.
func (n *netlink) request(kind, flags uint16, body []byte) error {
	n.seq++
	b := make([]byte, syscall.SizeofNlMsghdr, syscall.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(b[0:], uint32(syscall.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	binary.NativeEndian.PutUint32(b[8:], n.seq)
	b = append(b, body...)
	if err := syscall.Sendto(n.fd, b, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	reply := make([]byte, 8192)
	for {
		k, _, err := syscall.Recvfrom(n.fd, reply, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(reply[:k])
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Seq == n.seq && m.Header.Type == syscall.NLMSG_ERROR && len(m.Data) >= 4 {
				if e := int32(binary.NativeEndian.Uint32(m.Data)); e != 0 {
					return syscall.Errno(-e)
				}
				return nil
			}
		}
	}
}

// attribute appends one to a message; the kernel aligns them to four bytes.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func index(dev string) (uint32, error) {
	b, err := os.ReadFile("/sys/class/net/" + dev + "/ifindex")
	if err != nil {
		return 0, err
	}
	var i uint32
	_, err = fmt.Sscan(string(b), &i)
	return i, err
}

// link is struct ifinfomsg.
func link(i, flags, change uint32) []byte {
	b := make([]byte, syscall.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], i)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func (n *netlink) up(dev string) error {
	i, err := index(dev)
	if err != nil {
		return err
	}
	return n.request(syscall.RTM_NEWLINK, 0, link(i, syscall.IFF_UP, syscall.IFF_UP))
}

func (n *netlink) setMAC(dev, mac string) error {
	i, err := index(dev)
	if err != nil {
		return err
	}
	var hw [6]byte
	if k, err := fmt.Sscanf(mac, "%02x:%02x:%02x:%02x:%02x:%02x", &hw[0], &hw[1], &hw[2], &hw[3], &hw[4], &hw[5]); k != 6 {
		return fmt.Errorf("%q is no MAC address: %v", mac, err)
	}
	if err := n.request(syscall.RTM_NEWLINK, 0, link(i, 0, syscall.IFF_UP)); err != nil {
		return err
	}
	return n.request(syscall.RTM_NEWLINK, 0, attribute(link(i, 0, 0), syscall.IFLA_ADDRESS, hw[:]))
}

func (n *netlink) address(kind, flags uint16, dev string, p netip.Prefix) error {
	i, err := index(dev)
	if err != nil {
		return err
	}
	b := make([]byte, syscall.SizeofIfAddrmsg)
	b[0], b[1] = syscall.AF_INET, byte(p.Bits())
	binary.NativeEndian.PutUint32(b[4:], i)
	b = attribute(b, syscall.IFA_LOCAL, p.Addr().AsSlice())
	b = attribute(b, syscall.IFA_ADDRESS, p.Addr().AsSlice())
	return n.request(kind, flags, b)
}

func (n *netlink) route(dev string, gateway netip.Addr) error {
	i, err := index(dev)
	if err != nil {
		return err
	}
	b := make([]byte, syscall.SizeofRtMsg)
	b[0] = syscall.AF_INET
	b[4], b[5], b[6], b[7] = syscall.RT_TABLE_MAIN, syscall.RTPROT_BOOT, syscall.RT_SCOPE_UNIVERSE, syscall.RTN_UNICAST
	b = attribute(b, syscall.RTA_GATEWAY, gateway.AsSlice())
	b = attribute(b, syscall.RTA_OIF, binary.NativeEndian.AppendUint32(nil, i))
	return n.request(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, b)
}
