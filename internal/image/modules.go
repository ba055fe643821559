package image

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"strings"
)

// bootModules are the modules the guest needs before it has a root file
// system, for every driver: QEMU's virtio-mmio devices (announced by ACPI),
// Firecracker's vsock, the disks, the overlay. What they depend on is read out
// of the modules themselves. Their order here is kept where dependencies allow.
var bootModules = [...]string{
	"virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng",
	"overlay", "erofs",
	"vmw_vsock_virtio_transport",
}

// jobModules are those that root may load in a job, as on GitHub's runner: for loop
// mounts and AppImages, network namespaces, firewalls, container engines and
// clusters. One that the kernel does not have is left out.
var jobModules = [...]string{
	"loop", "fuse", "squashfs", "isofs", "udf", "vfat", "nls_iso8859_1", "nls_cp437", "nls_ascii", "nls_utf8", "dm_mod", "dm_crypt", "nbd", "zram", "binfmt_misc",
	"tun", "tap", "veth", "bridge", "br_netfilter", "dummy", "macvlan", "ipvlan", "vxlan", "geneve", "8021q", "ifb", "bonding", "ip_gre", "ipip", "sit",
	"wireguard",
	"vrf", "tls", "sch_htb", "sch_netem", "sch_tbf", "sch_ingress", "sch_fq", "cls_u32", "cls_bpf", "act_mirred", "tcp_bbr",
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_tables", "nft_chain_nat", "nft_compat", "nft_counter", "nft_ct", "nft_fib_inet", "nft_fib_ipv4",
	"nft_fib_ipv6", "nft_hash", "nft_limit", "nft_log", "nft_masq", "nft_nat", "nft_numgen", "nft_objref", "nft_queue", "nft_quota", "nft_redir", "nft_reject",
	"nft_reject_inet", "nft_tproxy", "nft_socket",
	"ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "iptable_raw", "ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle",
	"ip6table_raw",
	"ipt_REJECT", "ip6t_REJECT", "xt_addrtype", "xt_bpf", "xt_cgroup", "xt_comment", "xt_connmark", "xt_conntrack", "xt_CT", "xt_DSCP", "xt_hashlimit", "xt_ipvs",
	"xt_limit", "xt_LOG", "xt_mac", "xt_mark", "xt_MASQUERADE", "xt_multiport", "xt_nat", "xt_NFLOG", "xt_owner", "xt_physdev", "xt_recent", "xt_REDIRECT",
	"xt_set",
	"xt_socket", "xt_state", "xt_statistic", "xt_string", "xt_TCPMSS", "xt_tcpudp", "xt_TPROXY", "xt_u32",
	"ip_set", "ip_set_hash_ip", "ip_set_hash_net", "ip_set_hash_ipport", "ip_set_hash_netport", "ip_set_bitmap_port", "ip_vs", "ip_vs_rr", "ip_vs_wrr",
	"ip_vs_sh",
}

// moduleName normalises as the kernel does: virtio-rng.ko is virtio_rng.
func moduleName(s string) string {
	return strings.ReplaceAll(strings.TrimSuffix(s, ".ko"), "-", "_")
}

// modinfo returns what a module's .modinfo section says it must be loaded
// after: depends= and the softer softdep=pre:.
func modinfo(ko []byte) (depends, soft []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, fmt.Errorf("no .modinfo section")
	}
	data, err := io.ReadAll(io.LimitReader(section.Open(), 1<<20))
	if err != nil {
		return nil, nil, err
	}
	for entry := range strings.SplitSeq(string(data), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					depends = append(depends, moduleName(name))
				}
			}
		case "softdep":
			pre := false
			for word := range strings.FieldsSeq(value) {
				switch {
				case strings.HasSuffix(word, ":"):
					pre = word == "pre:"
				case pre:
					soft = append(soft, moduleName(word))
				}
			}
		}
	}
	return depends, soft, nil
}

// loadOrder returns the wanted modules and everything they depend on, each
// after its dependencies. A fixed list broke between two kernel updates
// (virtio_ring moved before virtio); only the modules know. load returns a
// module's bytes, and false when there is no such module; builtin says that
// the kernel has it inside, so that it is neither needed nor missing.
func loadOrder(want []string, load func(name string) ([]byte, bool), builtin func(name string) bool) ([]string, error) {
	var order []string
	const (
		visiting = 1
		done     = 2
	)
	state := map[string]int{}
	var visit func(name, parent string, hard bool) error
	visit = func(name, parent string, hard bool) error {
		name = moduleName(name)
		switch state[name] {
		case done:
			return nil
		case visiting:
			return fmt.Errorf("module %s depends on itself through %s", name, parent)
		}
		if builtin(name) {
			state[name] = done
			return nil
		}
		ko, ok := load(name)
		if !ok {
			if !hard {
				return nil
			}
			if parent != "" {
				return fmt.Errorf("module %s, which %s needs, is not in the kernel package", name, parent)
			}
			return fmt.Errorf("module %s is not in the kernel package", name)
		}
		state[name] = visiting
		depends, soft, err := modinfo(ko)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := visit(d, name, true); err != nil {
				return err
			}
		}
		for _, d := range soft {
			if err := visit(d, name, false); err != nil {
				return err
			}
		}
		state[name] = done
		order = append(order, name)
		return nil
	}
	for _, name := range want {
		if err := visit(name, "", true); err != nil {
			return nil, err
		}
	}
	return slices.Clip(order), nil
}
