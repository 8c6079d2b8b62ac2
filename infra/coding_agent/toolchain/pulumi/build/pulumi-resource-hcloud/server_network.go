package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// networkFields are the fields of a private network that a server is in.
func networkFields() map[string]*schema.Schema {
	return map[string]*schema.Schema{
		"network_id": {Type: schema.TypeInt, Optional: true, Computed: true},
		"subnet_id":  {Type: schema.TypeString, Optional: true},
		"ip":         {Type: schema.TypeString, Optional: true, Computed: true},
		"alias_ips": {
			Type: schema.TypeSet, Optional: true, Computed: true, Elem: &schema.Schema{Type: schema.TypeString},
		},
		"mac_address": {Type: schema.TypeString, Computed: true},
	}
}

// membership is a private network that a server is to be in.
type membership struct {
	network int64
	subnet  *net.IPNet
	ip      net.IP
	aliases []net.IP
}

// membershipsOf returns the private networks that are wanted, once each.
func membershipsOf(d *schema.ResourceData) (found []membership, err error) {
	for _, item := range d.Get("network").(*schema.Set).List() {
		fields := item.(map[string]any)
		wanted := membership{network: int64(fields["network_id"].(int)), ip: net.ParseIP(fields["ip"].(string))}
		if subnet := fields["subnet_id"].(string); subnet != "" {
			if wanted.network, wanted.subnet, err = subnetOf(subnet); err != nil {
				return nil, err
			}
		}
		for _, alias := range fields["alias_ips"].(*schema.Set).List() {
			wanted.aliases = append(wanted.aliases, net.ParseIP(alias.(string)))
		}
		if wanted.network == 0 {
			return nil, fmt.Errorf("networks: an entry names a networkId or a subnetId")
		}
		same := func(other membership) bool { return other.network == wanted.network }
		if slices.ContainsFunc(found, same) {
			return nil, fmt.Errorf("networks: network %d is named twice", wanted.network)
		}
		found = append(found, wanted)
	}
	return found, nil
}

// subnetOf reads the id of a subnet, such as 4711-10.0.1.0/24.
func subnetOf(id string) (network int64, subnet *net.IPNet, err error) {
	first, rest, _ := strings.Cut(id, "-")
	if network, err = strconv.ParseInt(first, 10, 64); err == nil {
		_, subnet, err = net.ParseCIDR(rest)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("subnetId: %q is not the id of a subnet, such as 4711-10.0.1.0/24", id)
	}
	return network, subnet, nil
}

// joinFirst puts a new server into its networks. One that is reached in no other way was not started before.
func joinFirst(
	ctx context.Context, d *schema.ResourceData, client *hcloud.Client, made *hcloud.Server, order hcloud.ServerCreateOpts,
) error {
	wanted, err := membershipsOf(d)
	if err != nil {
		return err
	}
	for _, each := range wanted {
		if err := join(ctx, client, made, each); err != nil {
			return err
		}
	}
	if order.StartAfterCreate != nil && !*order.StartAfterCreate {
		return powerOn(ctx, client, made)
	}
	return nil
}

func join(ctx context.Context, client *hcloud.Client, joining *hcloud.Server, wanted membership) error {
	return patiently(ctx, func() error {
		action, _, err := client.Server.AttachToNetwork(ctx, joining, hcloud.ServerAttachToNetworkOpts{
			Network: &hcloud.Network{ID: wanted.network}, IP: wanted.ip, AliasIPs: wanted.aliases, IPRange: wanted.subnet,
		})
		return begun(ctx, client, action, err)
	})
}

func leave(ctx context.Context, client *hcloud.Client, leaving *hcloud.Server, network *hcloud.Network) error {
	return patiently(ctx, func() error {
		action, _, err := client.Server.DetachFromNetwork(ctx, leaving, hcloud.ServerDetachFromNetworkOpts{Network: network})
		return begun(ctx, client, action, err)
	})
}

// setNetworks lets a server leave and join networks. Another address in the same network takes both.
func setNetworks(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	wanted, err := membershipsOf(d)
	if err != nil {
		return err
	}
	for _, has := range changed.PrivateNet {
		place := slices.IndexFunc(wanted, func(each membership) bool { return each.network == has.Network.ID })
		if place < 0 {
			if err := leave(ctx, client, changed, has.Network); err != nil {
				return err
			}
			continue
		}
		if !suits(has, wanted[place]) {
			if err := leave(ctx, client, changed, has.Network); err != nil {
				return err
			}
			continue // it is joined again below
		}
		if !sameAddresses(has.Aliases, wanted[place].aliases) {
			action, _, err := client.Server.ChangeAliasIPs(ctx, changed, hcloud.ServerChangeAliasIPsOpts{
				Network: has.Network, AliasIPs: wanted[place].aliases,
			})
			if err := begun(ctx, client, action, err); err != nil {
				return err
			}
		}
		wanted = slices.Delete(wanted, place, place+1)
	}
	for _, each := range wanted {
		if err := join(ctx, client, changed, each); err != nil {
			return err
		}
	}
	return nil
}

// suits says whether a server's address in a network is the wanted one.
func suits(has hcloud.ServerPrivateNet, wanted membership) bool {
	if wanted.ip != nil && !wanted.ip.Equal(has.IP) {
		return false
	}
	return wanted.subnet == nil || wanted.subnet.Contains(has.IP)
}

func sameAddresses(a, b []net.IP) bool {
	text := func(addresses []net.IP) []string {
		found := []string{}
		for _, address := range addresses {
			found = append(found, address.String())
		}
		slices.Sort(found)
		return found
	}
	return slices.Equal(text(a), text(b))
}

// asNetworkSet returns the networks of a server as a state has them. The cloud does not say by which subnet a network
// was asked for: that stays as it was given.
func asNetworkSet(found *hcloud.Server, d *schema.ResourceData) []map[string]any {
	subnets := map[int64]string{}
	for _, item := range d.Get("network").(*schema.Set).List() {
		if id := item.(map[string]any)["subnet_id"].(string); id != "" {
			if network, _, err := subnetOf(id); err == nil {
				subnets[network] = id
			}
		}
	}
	networks := make([]map[string]any, 0, len(found.PrivateNet))
	for _, has := range found.PrivateNet {
		aliases := make([]string, 0, len(has.Aliases))
		for _, alias := range has.Aliases {
			aliases = append(aliases, alias.String())
		}
		networks = append(networks, map[string]any{
			"network_id": int(has.Network.ID), "subnet_id": subnets[has.Network.ID], "ip": has.IP.String(),
			"alias_ips": aliases, "mac_address": has.MACAddress,
		})
	}
	return networks
}
