// flannel: upstream's packages as a daemon, for clusters in which both run and for figures side by
// side. Upstream's own main imports backends whose modules cannot be had everywhere; this one has
// vxlan, host-gw and alloc, keeps subnets in the Kubernetes API, and programs nftables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/alloc"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
)

var (
	kubeconfig = flag.String("kubeconfig-file", "", "kubeconfig with the API server's address and an identity")
	netConf    = flag.String("net-config-path", "/etc/kube-flannel/net-conf.json", "the network's configuration")
	subnetFile = flag.String("subnet-file", "/run/flannel/subnet.env", "where the CNI plugin is told the node's subnet")
	ipMasq     = flag.Bool("ip-masq", false, "masquerade what pods send out of the pod network")
)

// Upstream looks at its rules this often, in seconds.
const resync = 5

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "flannel:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	manager, err := kube.NewSubnetManager(ctx, "", *kubeconfig, "flannel.alpha.coreos.com", *netConf, true)
	if err != nil {
		return fmt.Errorf("subnet manager: %w", err)
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", *netConf, err)
	}
	families, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	uplink, err := ipmatch.LookupExtIface("", "", "", families, ipmatch.PublicIPOpts{})
	if err != nil {
		return fmt.Errorf("no interface: %w", err)
	}
	kind, err := backend.NewManager(ctx, manager, uplink).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var tasks sync.WaitGroup
	network, err := kind.RegisterNetwork(ctx, &tasks, config)
	if err != nil {
		return fmt.Errorf("backend %s: %w", config.BackendType, err)
	}
	lease := network.Lease()

	rules := &nftables.NFTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if *ipMasq {
		// There is no earlier subnet: a node's never changes here.
		err := rules.SetupAndEnsureMasqRules(ctx, config.Network, ip.IP4Net{}, ip.IP4Net{},
			config.IPv6Network, ip.IP6Net{}, ip.IP6Net{}, lease, resync, false)
		if err != nil {
			return fmt.Errorf("masquerade: %w", err)
		}
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resync)
	if err := manager.HandleSubnetFile(*subnetFile, config, *ipMasq, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("%s: %w", *subnetFile, err)
	}

	tasks.Go(func() { network.Run(ctx) })
	if err := manager.CompleteLease(ctx, lease, &tasks); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	tasks.Wait()
	return nil
}
