package main

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// addressFields are the fields of a server's public addresses: whether it has one of a kind, and which.
func addressFields() map[string]*schema.Schema {
	return map[string]*schema.Schema{
		"ipv4_enabled": {Type: schema.TypeBool, Optional: true, Default: true},
		"ipv6_enabled": {Type: schema.TypeBool, Optional: true, Default: true},
		"ipv4":         {Type: schema.TypeInt, Optional: true, Computed: true},
		"ipv6":         {Type: schema.TypeInt, Optional: true, Computed: true},
	}
}

// addressesOf returns the public addresses that are wanted. A server has one of each kind where nothing is said.
func addressesOf(d *schema.ResourceData) *hcloud.ServerCreatePublicNet {
	wanted := &hcloud.ServerCreatePublicNet{EnableIPv4: true, EnableIPv6: true}
	for _, item := range d.Get("public_net").(*schema.Set).List() {
		fields := item.(map[string]any)
		wanted.EnableIPv4, wanted.EnableIPv6 = fields["ipv4_enabled"].(bool), fields["ipv6_enabled"].(bool)
		if id := fields["ipv4"].(int); id != 0 && wanted.EnableIPv4 {
			wanted.IPv4 = &hcloud.PrimaryIP{ID: int64(id)}
		}
		if id := fields["ipv6"].(int); id != 0 && wanted.EnableIPv6 {
			wanted.IPv6 = &hcloud.PrimaryIP{ID: int64(id)}
		}
	}
	return wanted
}

// isHidden says whether a server is reached from nowhere.
func isHidden(wanted *hcloud.ServerCreatePublicNet) bool {
	return !wanted.EnableIPv4 && !wanted.EnableIPv6
}

// setAddresses gives a server other public addresses, for which it has to be off.
func setAddresses(ctx context.Context, d *schema.ResourceData, client *hcloud.Client, changed *hcloud.Server) error {
	wanted := addressesOf(d)
	return whileOff(ctx, client, changed, func() error {
		kinds := []struct {
			kind   hcloud.PrimaryIPType
			has    int64
			on     bool
			wanted *hcloud.PrimaryIP
		}{
			{hcloud.PrimaryIPTypeIPv4, changed.PublicNet.IPv4.ID, wanted.EnableIPv4, wanted.IPv4},
			{hcloud.PrimaryIPTypeIPv6, changed.PublicNet.IPv6.ID, wanted.EnableIPv6, wanted.IPv6},
		}
		for _, each := range kinds {
			keeps := each.on && each.has != 0 && (each.wanted == nil || each.wanted.ID == each.has)
			if keeps {
				continue
			}
			if err := releaseAddress(ctx, client, each.has); err != nil {
				return fmt.Errorf("%s: %w", each.kind, err)
			}
			if !each.on {
				continue
			}
			if err := takeAddress(ctx, client, changed, each.kind, each.wanted); err != nil {
				return fmt.Errorf("%s: %w", each.kind, err)
			}
		}
		return nil
	})
}

// releaseAddress takes an address from its server. One that the cloud made with the server goes; others are somebody's.
func releaseAddress(ctx context.Context, client *hcloud.Client, id int64) error {
	if id == 0 {
		return nil
	}
	found, _, err := client.PrimaryIP.GetByID(ctx, id)
	if err != nil || found == nil {
		return err
	}
	action, _, err := client.PrimaryIP.Unassign(ctx, id)
	if err := begun(ctx, client, action, err); err != nil {
		return err
	}
	if !found.AutoDelete {
		return nil
	}
	return removed(ctx, func() error {
		_, err := client.PrimaryIP.Delete(ctx, found)
		return err
	})
}

// takeAddress gives a server an address: that one, or a new one that goes with the server.
func takeAddress(
	ctx context.Context, client *hcloud.Client, server *hcloud.Server, kind hcloud.PrimaryIPType, wanted *hcloud.PrimaryIP,
) error {
	if wanted != nil {
		action, _, err := client.PrimaryIP.Assign(ctx, hcloud.PrimaryIPAssignOpts{
			ID: wanted.ID, AssigneeID: server.ID, AssigneeType: "server",
		})
		return begun(ctx, client, action, err)
	}
	made, _, err := client.PrimaryIP.Create(ctx, hcloud.PrimaryIPCreateOpts{
		Name: fmt.Sprintf("primary_ip-%d-%s", server.ID, kind), Type: kind, AssigneeID: &server.ID, AssigneeType: "server",
		AutoDelete: hcloud.Ptr(true),
	})
	if err != nil {
		return err
	}
	return done(ctx, client, made.Action)
}
