package network

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Names that are the gateway, whatever the policy.
const (
	// HostName is the name guests know the gateway's services by; so is any
	// name below it.
	HostName = "hearth.internal"

	dnsTTL = 60 // seconds
	// maxAnswers keeps an answer below the 512 bytes of plain DNS over UDP.
	maxAnswers = 14
	maxQuery   = 4096 // bytes
)

// answerDNS answers one query, nil if it is not one. It may wait for the
// host's resolver as long as ctx allows.
func (n *Network) answerDNS(ctx context.Context, query []byte) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil || header.Response {
		return nil
	}
	reply := dnsmessage.Header{ID: header.ID, Response: true, OpCode: header.OpCode,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	question, err := p.Question()
	if err != nil || header.OpCode != 0 {
		reply.RCode = dnsmessage.RCodeFormatError
		if err == nil {
			reply.RCode = dnsmessage.RCodeNotImplemented
		}
		return buildDNS(reply, nil, nil)
	}
	name := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	var ips []netip.Addr
	switch {
	case question.Class != dnsmessage.ClassINET:
		reply.RCode = dnsmessage.RCodeRefused
	case name == HostName || strings.HasSuffix(name, "."+HostName):
		reply.Authoritative = true
		ips = []netip.Addr{Gateway}
	case question.Type == dnsmessage.TypePTR:
		// Who asks for the name of an address gets no name; asking the host's
		// resolver would tell about private networks.
		reply.RCode = dnsmessage.RCodeNameError
	case !validName(name):
		reply.RCode = dnsmessage.RCodeNameError
	case n.rules.resolve(name) != "":
		// Of the two questions that every look-up asks, one is recorded.
		if question.Type != dnsmessage.TypeAAAA {
			n.record.add(Connection{Step: int(n.step.Load()), Host: name, Port: 53, Proto: "dns",
				Refused: true, Reason: n.rules.resolve(name), Start: time.Now()})
		}
		reply.RCode = dnsmessage.RCodeRefused
	case question.Type == dnsmessage.TypeA:
		ips, reply.RCode = n.resolve(ctx, name)
	case question.Type == dnsmessage.TypeAAAA, question.Type == typeHTTPS, question.Type == typeSVCB:
		// The name may exist, but there is no IPv6 here: an empty answer.
	default:
		reply.RCode = dnsmessage.RCodeNotImplemented
	}
	if question.Type != dnsmessage.TypeA {
		ips = nil
	}
	return buildDNS(reply, &question, ips)
}

const (
	typeSVCB  dnsmessage.Type = 64
	typeHTTPS dnsmessage.Type = 65
)

// resolve asks the host's resolver, and remembers what it said.
func (n *Network) resolve(ctx context.Context, name string) ([]netip.Addr, dnsmessage.RCode) {
	select {
	case n.queries <- struct{}{}:
		defer func() { <-n.queries }()
	case <-ctx.Done():
		return nil, dnsmessage.RCodeServerFailure
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Limits.DNSTimeout)
	defer cancel()
	found, err := n.cfg.Resolve(ctx, name)
	if err != nil {
		if dnsErr, ok := errors.AsType[*net.DNSError](err); ok && dnsErr.IsNotFound {
			return nil, dnsmessage.RCodeNameError
		}
		n.cfg.Log.Debug("resolving for a guest", "name", name, "err", err)
		return nil, dnsmessage.RCodeServerFailure
	}
	var ips []netip.Addr
	for _, ip := range found {
		if ip = ip.Unmap(); ip.Is4() && len(ips) < maxAnswers {
			n.names.add(ip, name)
			ips = append(ips, ip)
		}
	}
	return ips, dnsmessage.RCodeSuccess
}

func buildDNS(header dnsmessage.Header, question *dnsmessage.Question, ips []netip.Addr) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), header)
	b.EnableCompression()
	if question != nil {
		if b.StartQuestions() != nil || b.Question(*question) != nil {
			return nil
		}
	}
	if len(ips) > 0 {
		if b.StartAnswers() != nil {
			return nil
		}
		for _, ip := range ips {
			rh := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: dnsTTL}
			if b.AResource(rh, dnsmessage.AResource{A: ip.As4()}) != nil {
				return nil
			}
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

// serveDNSStream answers queries over TCP: each message behind its length in
// two bytes.
func (n *Network) serveDNSStream(ctx context.Context, conn net.Conn) {
	for {
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		length := binary.BigEndian.Uint16(size[:])
		if length > maxQuery {
			return
		}
		query := make([]byte, length)
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		answer := n.answerDNS(ctx, query)
		if answer == nil {
			return
		}
		binary.BigEndian.PutUint16(size[:], uint16(len(answer)))
		if _, err := conn.Write(append(size[:], answer...)); err != nil {
			return
		}
	}
}
